"""Energy, CO2 and loss of an experiment's checkpoints, put together from the store."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from curtail_pipeline.emissions.baselines import Baseline, always_on_baselines, baselines_table
from curtail_pipeline.emissions.grams import intervals_table, ledger, totals
from curtail_pipeline.emissions.model_card import model_card
from curtail_pipeline.emissions.report import HELDOUT_SCHEMA, LOSS_SCHEMA, ReportInput, build_report
from curtail_pipeline.errors import StoreError
from curtail_pipeline.federation.plan import read_journal
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.rule_settings import rule_of
from curtail_pipeline.stages.evaluate import stored_loss
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.tables import read_table
from curtail_pipeline.times import days_between, iso, midnight
from curtail_pipeline.tokens import balance as usage


def ledger_key(key: str) -> str:
    return f"emissions/{key}.parquet"


def checkpoint_ledger(project: Project, key: str) -> pl.DataFrame:
    """Energy and CO2 of one checkpoint per site and power state, the pause before its segment included.

    Raises:
        StoreError: there is no such checkpoint.
        TraceError: the traces of its days have not been ingested.
    """
    manifest = project.checkpoints.manifest(key)
    rows = [interval.model_dump() for interval in manifest.intervals]
    days = _days(project, min((r["start"] for r in rows), default=manifest.start), manifest.end)
    return ledger(intervals_table(rows, key), project.traces(days), project.experiment.sites, project.windows(days))


def _days(project: Project, start: datetime, end: datetime) -> Sequence[date]:
    """The days of a stretch of time, and the one before: a value or a window may begin there."""
    days = days_between(start, max(end, start + timedelta(seconds=1)))
    return [day for day in project.days if days[0].toordinal() - 1 <= day.toordinal() <= days[-1].toordinal()]


def stored_ledgers(project: Project) -> pl.DataFrame | None:
    """The ledgers of all committed checkpoints."""
    keys = [ledger_key(key) for key in project.checkpoints.keys() if project.store.exists(ledger_key(key))]
    return pl.concat([read_table(project.store, key) for key in keys]) if keys else None


def checkpoint_rows(project: Project) -> list[dict[str, Any]]:
    """A row per committed checkpoint with loss, energy and CO2."""
    ledgers = stored_ledgers(project)
    rows = []
    for manifest in map(project.checkpoints.manifest, project.checkpoints.keys()):
        sums = totals(ledgers.filter(pl.col("checkpoint") == manifest.key)) if ledgers is not None else {}
        weights = manifest.files.get("model.safetensors")
        rows.append(
            {
                "key": manifest.key,
                "parent": manifest.parent,
                "mode": manifest.mode,
                "members": manifest.members,
                "rounds": manifest.rounds,
                "steps": manifest.steps.end,
                "tokens": manifest.tokens.segment,
                "total_tokens": manifest.tokens.total,
                "start": iso(manifest.start),
                "end": iso(manifest.end),
                "stop_reason": manifest.stop_reason,
                "weights_sha256": weights.sha256 if weights else None,
                "heldout_loss": stored_loss(project, manifest.key),
                "kwh": sums.get("kwh"),
                "co2_g": sums.get("co2_g"),
            }
        )
    return rows


def summarise(project: Project) -> dict[str, Any]:
    """Checkpoints, totals, always-on baselines and the paths of what was made."""
    rows = checkpoint_rows(project)
    last = project.parent
    ledgers = stored_ledgers(project)
    ours = totals(ledgers) if ledgers is not None else {}
    baselines = always_on_baselines(
        last.steps.end,
        project.start,
        project.experiment.sites,
        project.traces(project.days),
        project.experiment.baseline_regions,
    ) if last.steps.end else []  # fmt: skip
    compared = baselines_table(baselines, ours) if baselines else None
    return {
        "experiment": project.experiment.name,
        "synthetic": is_synthetic(project),
        "start": iso(project.start),
        "end": iso(last.end),
        "checkpoints": rows,
        "steps": last.steps.end,
        "tokens": last.tokens.total,
        "kwh": ours.get("kwh"),
        "co2_g": ours.get("co2_g"),
        "curtailed_share": ours.get("curtailed_share"),
        "unaccounted_kwh": ours.get("unaccounted_kwh"),
        "baselines": compared.to_dicts() if compared is not None else [],
        "report": str(report_path(project)),
        "checkpoint": str(project.checkpoints.folder(last.key)),
        "home": str(project.home.root),
    }


def write_report(project: Project) -> dict[str, Any]:
    """Write the report's page; returns what `summarise` does.

    Raises:
        StoreError: there is no checkpoint yet.
    """
    summary = summarise(project)
    ledgers = stored_ledgers(project)
    if ledgers is None:
        raise StoreError(f"no emissions ledger in {project.store.root}; materialise emissions_ledger for a checkpoint")
    manifests = [project.checkpoints.manifest(key) for key in project.checkpoints.keys()]
    experiment = project.experiment
    page = build_report(
        ReportInput(
            name=experiment.name,
            experiment_sha256=project.home.record().sha256,
            policy=experiment.policy.name,
            sites=experiment.sites,
            manifests=manifests,
            traces=project.traces(project.days),
            windows=project.windows(project.days),
            intervals=pl.concat([_intervals(manifest) for manifest in manifests]),
            ledger=ledgers,
            baselines=_baselines(project),
            losses=_training_losses(project, manifests),
            heldout=_heldout_losses(project, manifests),
            threshold=_threshold(experiment),
        )
    )
    project.store.write_bytes("report/index.html", page.encode())
    return summary


def compare_day(project: Project, day: str) -> tuple[pl.DataFrame, Any]:
    """Every policy on one day's traces, from its midnight: a table, and the plot of kg against hours."""
    from curtail_pipeline.simulation.compare import compare

    wanted = date.fromisoformat(day)
    return compare(project.experiment, project.traces([wanted]), start=max(midnight(wanted), project.start))


def card_of(project: Project, key: str) -> str:
    """The model card of a checkpoint.

    Raises:
        StoreError: no such checkpoint, or its emissions have not been accounted.
    """
    lineage = [project.checkpoints.manifest(name) for name in project.checkpoints.lineage(key)]
    ledgers = stored_ledgers(project)
    if ledgers is None:
        raise StoreError(f"no emissions ledger in {project.store.root}; materialise emissions_ledger for {key}")
    return model_card(
        f"{project.experiment.name} {key}",
        lineage,
        project.experiment.sites,
        ledgers,
        heldout_loss=stored_loss(project, key),
        synthetic=is_synthetic(project),
    )


def is_synthetic(project: Project) -> bool:
    """Whether the traces come from the model rather than from a grid."""
    return project.experiment.traces.provider == "synthetic"


def _intervals(manifest: Manifest) -> pl.DataFrame:
    return intervals_table([interval.model_dump() for interval in manifest.intervals], manifest.key)


def _baselines(project: Project) -> list[Baseline]:
    steps = project.parent.steps.end
    if not steps:
        return []
    experiment, traces = project.experiment, project.traces(project.days)
    return always_on_baselines(steps, project.start, experiment.sites, traces, experiment.baseline_regions)


def _threshold(experiment: Experiment) -> float | None:
    """gCO2/kWh below which windows open, where all regions have the same."""
    rules = [rule_of(experiment.policy, site.region, experiment.rules).signals[0] for site in experiment.sites]
    found = {rule.enter_at for rule in rules if rule.kind == "marginal_intensity"}
    return found.pop() if len(found) == 1 else None


def _training_losses(project: Project, manifests: Sequence[Manifest]) -> pl.DataFrame:
    rows = []
    for manifest in manifests:
        tokens = manifest.tokens.total - manifest.tokens.segment
        for line in read_journal(project.store, f"checkpoints/{manifest.key}"):
            tokens += sum(line.done.tokens.values())
            rows += [
                {"checkpoint": manifest.key, "site": site, "tokens": tokens, "loss": line.results[site].loss_mean}
                for site in line.done.steps
            ]
    return pl.DataFrame(rows, schema=LOSS_SCHEMA)


def _heldout_losses(project: Project, manifests: Sequence[Manifest]) -> pl.DataFrame:
    rows = [
        {"checkpoint": manifest.key, "tokens": manifest.tokens.total, "loss": loss}
        for manifest in manifests
        if (loss := stored_loss(project, manifest.key)) is not None
    ]
    return pl.DataFrame(rows, schema=HELDOUT_SCHEMA)


def report_path(project: Project) -> Path:
    return project.store.path("report/index.html")


def show_checkpoint(project: Project, key: str) -> dict[str, Any]:
    """The manifest and what of the text has been used: sequences, tokens and share of all tokens per site and epoch."""
    used = project.checkpoints.manifest(key).token_ledger()
    return {
        **project.checkpoints.show(key).model_dump(mode="json"),
        "consumed": usage.summarise(used, project.experiment.training.sequence_length),
        "heldout_loss": stored_loss(project, key),
    }
