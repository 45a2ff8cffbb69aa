"""Energy, CO2 and loss of an experiment's checkpoints, put together from the store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TYPE_CHECKING

import polars as pl

from curtail_pipeline.emissions.baselines import Compared, always_on_baselines, compare_baselines
from curtail_pipeline.emissions.basis import Clock, clock_of, synthetic_regions
from curtail_pipeline.emissions.battery import read_on_site
from curtail_pipeline.emissions.grams import PowerInterval, Totals, accounting_signals, intervals_table, ledger
from curtail_pipeline.emissions.ledger_table import parse_ledger
from curtail_pipeline.emissions.supply import OwnPower, has_own_power, supplied_intervals
from curtail_pipeline.federation.orders import Plan
from curtail_pipeline.federation.plan import plan_key, read_journal
from curtail_pipeline.scheduling.curtailed import curtailed_stretches
from curtail_pipeline.scheduling.view import max_signal_ages
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.stages.evaluate import stored_loss
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.signal_versions import SignalVersions
from curtail_pipeline.stages.wall_power import between_checkpoints
from curtail_pipeline.storage.checkpoints import FIRST_KEY
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.records import Json
from curtail_pipeline.storage.tables import BETWEEN, ledger_key, write_table
from curtail_pipeline.times import days_between, from_us, midnight, to_us
from curtail_pipeline.tokens import balance as usage

if TYPE_CHECKING:
    from curtail_pipeline.emissions.chart_style import Chart


def checkpoint_ledger(project: Project, key: str, versions: SignalVersions | None = None) -> pl.DataFrame:
    """Energy and CO2 of one checkpoint per site and power state, the pause before its segment included.

    Raises:
        StoreError: there is no such checkpoint.
        TraceError: the traces of its days have not been ingested.
    """
    manifest = project.checkpoints.manifest(key)
    sites, days = project.experiment.sites, counted_days(project, manifest)
    intervals = intervals_table(manifest.intervals, key)
    if any(has_own_power(site) for site in sites):
        chain = [project.checkpoints.manifest(name) for name in project.checkpoints.lineage(key)]
        intervals = power_of(project, chain).filter(pl.col("checkpoint") == key)
    traces = project.traces(days)
    return ledger(
        intervals,
        accounting_signals(traces, max_signal_ages(project.experiment)),
        sites,
        project.windows(days),
        clock=_clock(project, manifest),
        synthetic=synthetic_regions(traces),
        versions=(versions or SignalVersions(project)).of([site.region for site in sites], days),
    )


def counted_days(project: Project, manifest: Manifest) -> Sequence[date]:
    """The days whose signals a checkpoint's ledger depends on; all since the start where a battery carries charge."""
    first = min((part.start for part in manifest.intervals), default=manifest.start)
    if any(has_own_power(site) for site in project.experiment.sites):
        first = project.checkpoints.manifest(FIRST_KEY).start
    return days_of(project, first, manifest.end)


def stale_ledgers(project: Project, versions: SignalVersions) -> list[str]:
    """Keys of the checkpoints whose stored ledger was counted with other signals than are stored now."""
    found = []
    for key in project.checkpoints.keys():
        if not project.store.exists(ledger_key(key)):
            continue
        table = _stored_ledger(project, key)
        days = counted_days(project, project.checkpoints.manifest(key))
        now = versions.of([site.region for site in project.experiment.sites], days)
        told = {site.name: now[site.region] for site in project.experiment.sites}
        sites, counted = table["site"].to_list(), table["signal_version"].to_list()
        if any(told[site] != version for site, version in zip(sites, counted, strict=True)):
            found.append(key)
    return found


def refresh_ledgers(project: Project, signals: SignalVersions) -> Iterator[tuple[str, pl.DataFrame]]:
    """Count every stale ledger again, and store it: its checkpoint and its table."""
    for key in stale_ledgers(project, signals):
        table = checkpoint_ledger(project, key, signals)
        write_table(project.store, ledger_key(key), table)
        yield key, table


def _clock(project: Project, manifest: Manifest) -> Clock:
    folder = f"checkpoints/{manifest.key}"
    if not project.store.exists(plan_key(folder)):
        return "virtual"
    planned = project.store.read_record(plan_key(folder), Plan).rounds is not None
    rounds = [(line.done.start, line.done.end) for line in read_journal(project.store, folder)]
    return clock_of(rounds, (manifest.start, manifest.end), planned=planned)


@dataclass(frozen=True)
class Since:
    """What was drawn since the last checkpoint, by the wall clock."""

    end: datetime
    intervals: list[PowerInterval]


def power_of(project: Project, chain: Sequence[Manifest], since: Since | None = None) -> pl.DataFrame:
    """What the sites drew for these checkpoints: `grams.INTERVAL_SCHEMA`.

    Args:
        chain: from the initialised model on, as a battery carries its charge from one checkpoint to the next.
        since: what follows the last of them, `BETWEEN` in the table.
    """
    parts = [intervals_table(manifest.intervals, manifest.key) for manifest in chain]
    ends = [(manifest.key, to_us(manifest.end)) for manifest in chain]
    if since is not None:
        parts.append(intervals_table(since.intervals, BETWEEN))
        ends.append((BETWEEN, to_us(since.end)))
    table, own = pl.concat(parts), dict[str, OwnPower]()
    if any(has_own_power(site) for site in project.experiment.sites):
        own = own_power(
            project, project.traces(days_of(project, chain[0].start, since.end if since else chain[-1].end))
        )
    parts = [table.filter(~pl.col("site").is_in(list(own)))]
    for site in project.experiment.sites:
        if site.name in own:
            load = table.filter(pl.col("site") == site.name)
            parts.append(supplied_intervals(site, load, own[site.name], to_us(chain[0].start), ends))
    return pl.concat(parts)


def own_power(project: Project, traces: pl.DataFrame) -> dict[str, OwnPower]:
    """Of the sites that have a battery or on-site generation; `traces` of the time that is accounted."""
    sites = [site for site in project.experiment.sites if has_own_power(site)]
    if not sites:
        return {}
    curtailed = curtailed_stretches(project.experiment, traces)
    return {
        site.name: OwnPower(
            (curtailed[site.name].start, curtailed[site.name].end),
            None if site.on_site is None else read_on_site(site.on_site),
        )
        for site in sites
    }


def days_of(project: Project, start: datetime, end: datetime) -> Sequence[date]:
    """The days of a stretch of time, and those before in which a value or a window that still counts may begin."""
    longest = max(age or 0.0 for age in max_signal_ages(project.experiment).values())
    first = days_between(start - timedelta(days=1, seconds=longest), start)[0]
    last = days_between(start, max(end, start + timedelta(seconds=1)))[-1]
    return [day for day in project.days if first <= day <= last]


def since_last(project: Project, signals: Mapping[str, Signal]) -> Since | None:
    """None in virtual time, which stands still between checkpoints."""
    if project.clock_mode == "headless":
        return None
    newest = max((signal.valid_until for signal in signals.values()), default=0)
    end, intervals = between_checkpoints(project, from_us(newest))
    return Since(end, intervals) if intervals else None


def between_ledger(
    project: Project, since: Since, signals: Mapping[str, Signal], versions: SignalVersions
) -> pl.DataFrame:
    """Energy and CO2 since the last checkpoint: `grams.LEDGER_SCHEMA`, its checkpoint `BETWEEN`."""
    chain = [project.checkpoints.manifest(key) for key in project.checkpoints.keys()]
    power = power_of(project, chain, since).filter(pl.col("checkpoint") == BETWEEN)
    days = days_of(project, chain[-1].end, since.end)
    return ledger(
        power,
        signals,
        project.experiment.sites,
        project.windows(days),
        clock="wall" if project.clock_mode == "live" else "virtual",
        synthetic=synthetic_regions(project.traces(days)),
        versions=versions.of([site.region for site in project.experiment.sites], days),
    )


def stored_ledgers(project: Project) -> pl.DataFrame | None:
    """The ledgers of all committed checkpoints.

    Raises:
        StoreError: one is damaged, or was written by another version.
    """
    keys = [key for key in project.checkpoints.keys() if project.store.exists(ledger_key(key))]
    return pl.concat([_stored_ledger(project, key) for key in keys]) if keys else None


def _stored_ledger(project: Project, key: str) -> pl.DataFrame:
    name, store = ledger_key(key), project.store
    return parse_ledger(store.read_bytes(name), f"{name} in the store {store.uri}")


def compared(
    project: Project, steps: int, traces: pl.DataFrame, signals: Mapping[str, Signal], ours: Totals
) -> list[Compared]:
    """Always-on training of as many steps from the experiment's start, beside what was used for them."""
    if not steps:
        return []
    experiment, own = project.experiment, own_power(project, traces)
    regions = experiment.baseline_regions
    return compare_baselines(always_on_baselines(steps, project.start, experiment.sites, signals, regions, own), ours)


def compare_day(project: Project, day: str) -> "tuple[pl.DataFrame, Chart]":
    """Every policy on one day's traces, from its midnight: a table, and the plot of kg against hours."""
    from curtail_pipeline.simulation.compare import compare

    wanted = date.fromisoformat(day)
    # Days after the clock's end are ingested too, and compared like all others.
    clock = project.experiment.clock.model_copy(update={"end": None})
    experiment = project.experiment.model_copy(update={"clock": clock})
    table, draw = compare(experiment, project.traces([wanted]), start=max(midnight(wanted), project.start))
    return table, draw()


def show_checkpoint(project: Project, key: str) -> dict[str, Json]:
    """The manifest and what of the text has been used: sequences, tokens and share of all tokens per site and epoch."""
    used = project.checkpoints.manifest(key).token_ledger()
    return {
        **project.checkpoints.show(key).model_dump(mode="json"),
        "consumed": usage.summarise(used, project.experiment.training.sequence_length),
        "heldout_loss": stored_loss(project, key),
    }
