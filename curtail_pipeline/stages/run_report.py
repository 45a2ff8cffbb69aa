"""The report of a whole run, put together from the store, and its summary."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import polars as pl

from curtail_pipeline.emissions.baselines import Compared
from curtail_pipeline.emissions.basis import is_synthetic, label_of
from curtail_pipeline.emissions.grams import Totals, accounting_signals, totals
from curtail_pipeline.emissions.report import HELDOUT_SCHEMA, LOSS_SCHEMA, ReportInput
from curtail_pipeline.errors import StoreError
from curtail_pipeline.federation.plan import read_journal
from curtail_pipeline.scheduling.view import View, max_signal_ages, on_site_of
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.rule_settings import rule_of
from curtail_pipeline.signals.held import ACCOUNTING_KINDS, Signal, read_signals
from curtail_pipeline.simulation.oracle import least_co2
from curtail_pipeline.stages.account import (
    Since,
    between_ledger,
    compared,
    power_of,
    since_last,
    stale_ledgers,
    stored_ledgers,
)
from curtail_pipeline.stages.central_reference import CentralReference, central_reference
from curtail_pipeline.stages.checkpoint_rows import CheckpointRow, checkpoint_rows
from curtail_pipeline.stages.evaluate import stored_loss
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.signal_versions import SignalVersions
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.package_versions import versions
from curtail_pipeline.storage.tables import BETWEEN, BETWEEN_KEY, REPORT_KEY, write_table
from curtail_pipeline.times import iso, to_us, utc_now


@dataclass(frozen=True)
class RunSummary:
    """What a run came to, beside always-on training of the same steps, and where its results are."""

    experiment: str
    synthetic: bool
    """Whether any value of its traces is made up."""
    basis: str | None
    """What its energy and CO2 rest on, e.g. a projection in virtual time; None where it has drawn nothing."""
    start: str
    end: str
    checkpoints: list[CheckpointRow]
    steps: int
    tokens: int
    kwh: float | None
    co2_g: float | None
    co2_g_low: float | None
    co2_g_high: float | None
    """With the unaccounted energy at its day's lowest and highest intensity; None where a day has none."""
    curtailed_share: float | None
    unaccounted_kwh: float | None
    baselines: list[Compared]
    centralised: CentralReference
    """Held-out loss of centralised training with as many tokens."""
    report: str
    checkpoint: str
    home: str


@dataclass(frozen=True)
class _Accounts:
    """All that a report of the whole run counts with, read and computed once."""

    traces: pl.DataFrame
    signals: dict[str, Signal]
    ledgers: pl.DataFrame | None
    """Of all checkpoints, and of the time since the last one."""
    since: Since | None
    baselines: list[Compared]


def _accounts(project: Project, versions: SignalVersions | None = None) -> _Accounts:
    experiment, traces, ledgers = project.experiment, project.traces(project.days), stored_ledgers(project)
    signals = accounting_signals(traces, max_signal_ages(experiment))
    since = None if ledgers is None else since_last(project, signals)
    if ledgers is not None and since is not None:
        ledgers = pl.concat([ledgers, between_ledger(project, since, signals, versions or SignalVersions(project))])
    ours = totals(ledgers) if ledgers is not None else Totals(0.0, 0.0, None, None, 0.0)
    baselines = compared(project, project.parent.steps.end, traces, signals, ours)
    return _Accounts(traces, signals, ledgers, since, baselines)


def summarise(project: Project) -> RunSummary:
    """Checkpoints, totals, always-on baselines and the paths of what was made."""
    return _summary(project, _accounts(project))


def _summary(project: Project, accounts: _Accounts) -> RunSummary:
    last = project.parent
    ours = totals(accounts.ledgers) if accounts.ledgers is not None else None
    return RunSummary(
        experiment=project.experiment.name,
        synthetic=is_synthetic(accounts.traces),
        basis=label_of(accounts.ledgers, synthetic=is_synthetic(accounts.traces)),
        start=iso(project.start),
        end=iso(last.end),
        checkpoints=checkpoint_rows(project),
        steps=last.steps.end,
        tokens=last.tokens.total,
        kwh=ours.kwh if ours else None,
        co2_g=ours.co2_g if ours else None,
        co2_g_low=ours.co2_g_low if ours else None,
        co2_g_high=ours.co2_g_high if ours else None,
        curtailed_share=ours.curtailed_share if ours else None,
        unaccounted_kwh=ours.unaccounted_kwh if ours else None,
        baselines=accounts.baselines,
        centralised=central_reference(project, last.tokens.total),
        report=f"{project.store.uri}/{REPORT_KEY}",
        checkpoint=project.checkpoints.where(last.key),
        home=str(project.home.root),
    )


def write_report(project: Project, signals: SignalVersions) -> RunSummary:
    """Write the report's page, figures and data; returns what `summarise` does.

    Raises:
        StoreError: there is no checkpoint yet.
    """
    from curtail_pipeline.emissions.report_files import report_files

    accounts = _accounts(project, signals)
    if accounts.ledgers is None:
        raise StoreError(f"no emissions ledger in {project.store.uri}; materialise emissions_ledger for a checkpoint")
    manifests = [project.checkpoints.manifest(key) for key in project.checkpoints.keys()]
    experiment = project.experiment
    files = report_files(
        ReportInput(
            name=experiment.name,
            experiment_sha256=project.home.record().sha256,
            policy=experiment.policy.name,
            sites=experiment.sites,
            manifests=manifests,
            traces=accounts.traces,
            signals=accounts.signals,
            windows=project.windows(project.days),
            intervals=power_of(project, manifests, accounts.since),
            ledger=accounts.ledgers,
            baselines=accounts.baselines,
            losses=training_losses(project, manifests),
            heldout=heldout_losses(project, manifests),
            threshold=threshold_of(experiment),
            written=utc_now(),
            tool_version=versions()["curtail_pipeline"],
            stale=stale_ledgers(project, signals),
            forecast=_last_forecasts(project),
            power_error=experiment.accounting.power_error,
            oracle_g=_oracle_g(project, accounts.signals),
        )
    )
    for name, content in files.items():
        project.store.write_bytes(f"report/{name}", content)
    write_table(project.store, BETWEEN_KEY, accounts.ledgers.filter(pl.col("checkpoint") == BETWEEN))
    return _summary(project, accounts)


def _oracle_g(project: Project, signals: dict[str, Signal]) -> float | None:
    """The least that the same steps could have emitted until the end of the last segment; None where none is known."""
    experiment, last = project.experiment, project.parent
    if any(site.region not in signals for site in experiment.sites) or not last.steps.end:
        return None
    view = View(experiment, signals, {}, on_site=on_site_of(experiment))
    found = least_co2(view, last.steps.end, to_us(project.start), to_us(last.end))
    return None if found is None else found.co2_kg * 1_000


def _last_forecasts(project: Project) -> dict[str, Signal]:
    """By region, what the newest forecast before each time said of it; empty where none were recorded."""
    found = dict[str, Signal]()
    for region in project.experiment.regions:
        issued = project.forecasts(region, project.days)
        if issued is None:
            continue
        newest = issued.filter(pl.col("issued_at") < pl.col("target")).sort("issued_at")
        rows = newest.filter(pl.col("kind").is_in(ACCOUNTING_KINDS)).unique(["target", "kind"], keep="last")
        found |= read_signals(rows.rename({"target": "time"}))
    return found


def threshold_of(experiment: Experiment) -> float | None:
    """gCO2/kWh below which windows open, where all regions have the same."""
    rules = [rule_of(experiment.policy, site.region, experiment.rules).signals[0] for site in experiment.sites]
    found = {rule.enter_at for rule in rules if rule.kind == "marginal_intensity"}
    return found.pop() if len(found) == 1 else None


def training_losses(project: Project, manifests: Sequence[Manifest]) -> pl.DataFrame:
    """Of every round of these checkpoints and site: `checkpoint, site, time, tokens (cumulative), loss`."""
    rows = []
    for manifest in manifests:
        tokens = manifest.tokens.total - manifest.tokens.segment
        journal = read_journal(project.store, f"checkpoints/{manifest.key}")
        for time, line in zip(_times([line.done.end for line in journal], manifest), journal, strict=True):
            tokens += sum(line.done.tokens.values())
            rows += [
                (manifest.key, site, time, tokens, line.results[site].loss_mean)
                for site, steps in line.done.steps.items()
                if steps
            ]
    return pl.DataFrame(rows, schema=LOSS_SCHEMA, orient="row")


def _times(ends: Sequence[datetime], manifest: Manifest) -> list[datetime]:
    """Ends of rounds by the experiment's clock: those of a replay were written by the wall's, and are spread evenly."""
    if all(manifest.start <= end <= manifest.end for end in ends):
        return list(ends)
    return [manifest.start + (manifest.end - manifest.start) * (i + 1) / len(ends) for i in range(len(ends))]


def heldout_losses(project: Project, manifests: Sequence[Manifest]) -> pl.DataFrame:
    """Of those of these checkpoints that were evaluated: `checkpoint, time, tokens, loss`."""
    rows = [
        (manifest.key, manifest.end, manifest.tokens.total, loss)
        for manifest in manifests
        if (loss := stored_loss(project, manifest.key)) is not None
    ]
    return pl.DataFrame(rows, schema=HELDOUT_SCHEMA, orient="row")
