"""From the library's results to what the Dagster UI shows."""

import base64
import json
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl
import polars.selectors as cs

from curtail_pipeline.corpus.corpus_records import ShardManifest
from curtail_pipeline.federation.plan import read_journal
from curtail_pipeline.federation.progress import StepDone
from curtail_pipeline.signals.checks import CheckOutcome
from curtail_pipeline.stages.derive_windows import DerivedDay
from curtail_pipeline.stages.ingest import IngestedDay
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_events import Event, Progress
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.tables import trace_key, windows_key
from curtail_pipeline.times import midnight
from curtail_pipeline.windows.day_tables import day_summary, diff_windows, plot_windows

if TYPE_CHECKING:
    from curtail_pipeline.emissions.charts import Chart
    from curtail_pipeline.stages.account import RunSummary
    from curtail_pipeline.stages.replay_check import Replayed

Facts = dict[str, dg.MetadataValue | str | int | float | bool]
"""What the UI shows of a materialisation, by name."""

SEVERITY = {True: dg.AssetCheckSeverity.ERROR, False: dg.AssetCheckSeverity.WARN}


def log_progress(log: logging.Logger | dg.DagsterLogManager, observe: Progress) -> Progress:
    """Report to the Dagster log what is worth a line there, and everything to `observe`."""

    def both(event: Event) -> None:
        if not isinstance(event, StepDone):
            log.info("%s: %s", type(event).__name__, ", ".join(f"{key} {value}" for key, value in vars(event).items()))
        observe(event)

    return both


def table(rows: pl.DataFrame) -> dg.MetadataValue:
    """A small frame as a table in the UI."""
    if rows.is_empty():
        return dg.MetadataValue.text("none")
    rounded = rows.with_columns(cs.float().round(3))
    records = [dg.TableRecord(json.loads(json.dumps(row, default=str))) for row in rounded.iter_rows(named=True)]
    return dg.MetadataValue.table(records)


def image(png: bytes, alt: str) -> dg.MetadataValue:
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


# Signals


def check_result(outcome: CheckOutcome) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=outcome.name,
        passed=outcome.passed,
        severity=SEVERITY[outcome.blocking],
        description=outcome.description,
        metadata=outcome.metadata,
    )


def report_check(instance: dg.DagsterInstance, outcome: CheckOutcome, partition: str) -> None:
    """Record a check's outcome from outside an asset step."""
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey("carbon_traces"),
            check_name=outcome.name,
            passed=outcome.passed,
            severity=SEVERITY[outcome.blocking],
            description=outcome.description,
            metadata={**outcome.metadata, "partition": partition},
        )
    )


def trace_event(found: IngestedDay, project: Project) -> dg.AssetMaterialization:
    key = dg.MultiPartitionKey({"day": found.day.isoformat(), "region": found.region})
    uri = str(project.store.path(trace_key(found.day.isoformat(), found.region)))
    return dg.AssetMaterialization(
        "carbon_traces",
        partition=key,
        metadata={**found.metadata, "dagster/row_count": len(found.table), "dagster/uri": uri},
    )


def window_metadata(derived: DerivedDay, plot: bool = True) -> Facts:
    """Hours per site, the windows, what changed and, if wanted, a plot of signal and windows (about 0.5 s of CPU)."""
    start = midnight(derived.day)
    end = start + timedelta(days=1)
    hours = day_summary(derived.table, derived.sites, start, end)
    metadata: Facts = {
        "hours": table(hours),
        "windows": table(derived.table.select("site", "start", "end", "opened_by", "closed_by")),
        "total_hours": float(hours["hours"].sum()),
        "later_days_changed": derived.state_changed,
    }
    if plot:
        from curtail_pipeline.emissions.charts import to_png

        chart = plot_windows(derived.traces, derived.table, start=start, end=end)
        metadata["plot"] = image(to_png(chart, scale=0.7), "signal with windows shaded")
    if derived.previous is not None:
        metadata["changed"] = table(diff_windows(derived.previous, derived.table))
    return metadata


def windows_event(derived: DerivedDay, project: Project, plot: bool = True) -> dg.AssetMaterialization:
    day = derived.day.isoformat()
    return dg.AssetMaterialization(
        "curtailment_windows",
        partition=day,
        metadata={
            **window_metadata(derived, plot),
            "dagster/row_count": len(derived.table),
            "dagster/uri": str(project.store.path(windows_key(day))),
        },
    )


# Text


def log_slices(log: dg.DagsterLogManager) -> Callable[[int, int], None]:
    """Progress of a shard build for the Dagster log."""
    return lambda done, total: log.info(f"{done} of {total} slices of the corpus read")


def shards_metadata(manifest: ShardManifest) -> Facts:
    """The counts of a shard manifest, and the whole of it."""
    content = manifest.model_dump(mode="json")
    plain = {key: value for key, value in content.items() if isinstance(value, int | float | str)}
    return {**plain, "dagster/row_count": manifest.documents, "manifest": dg.MetadataValue.json(content)}


# Training


def checkpoint_metadata(project: Project, manifest: Manifest) -> Facts:
    losses: dict[str, float] = {}
    for line in read_journal(project.store, f"checkpoints/{manifest.key}"):
        for site, result in line.results.items():
            losses[site] = float("nan") if result.loss_last is None else result.loss_last
    return {
        "mode": manifest.mode,
        "members": ", ".join(manifest.members),
        "parent": manifest.parent or "none",
        "stop_reason": manifest.stop_reason,
        "rounds": manifest.rounds,
        "steps": manifest.steps.end - manifest.steps.begin,
        "total_steps": manifest.steps.end,
        "tokens": manifest.tokens.segment,
        "total_tokens": manifest.tokens.total,
        "start": dg.MetadataValue.timestamp(manifest.start),
        "end": dg.MetadataValue.timestamp(manifest.end),
        **{f"training_loss/{site}": loss for site, loss in losses.items()},
        "sha256": manifest.files["model.safetensors"].sha256,
        "dagster/uri": str(project.checkpoints.folder(manifest.key)),
        "manifest": dg.MetadataValue.json(
            {**manifest.model_dump(mode="json", exclude={"intervals"}), "intervals": len(manifest.intervals)}
        ),
    }


def ledger_metadata(ledger: pl.DataFrame) -> Facts:
    return {
        "kwh": float(ledger["kwh"].sum()),
        "co2_g": float(ledger["co2_g"].sum()),
        "curtailed_kwh": float(ledger["curtailed_kwh"].sum()),
        "unaccounted_kwh": float(ledger["unaccounted_kwh"].sum()),
        "ledger": table(ledger),
    }


def replay_metadata(project: Project, replayed: "Replayed") -> Facts:
    """What the committed checkpoint is, and whether repeating it gave the same weights."""
    return {
        **checkpoint_metadata(project, replayed.manifest),
        "on_demand": "replay",
        "identical": replayed.identical,
        "committed_sha256": replayed.committed_sha256,
        "replayed_sha256": replayed.replayed_sha256,
        "replayed_steps": replayed.steps,
        "seconds": round(replayed.seconds, 3),
        "started_fresh": ", ".join(replayed.fresh_states) or "no site",
    }


def report_metadata(report: "RunSummary") -> Facts:
    """Totals, baselines and where the page is."""
    totals = {
        "kwh": report.kwh,
        "co2_g": report.co2_g,
        "curtailed_share": report.curtailed_share,
        "unaccounted_kwh": report.unaccounted_kwh,
        "tokens": report.tokens,
        "steps": report.steps,
    }
    return {
        **{key: value for key, value in totals.items() if value is not None},
        "baselines": table(pl.DataFrame(report.baselines)),
        "report": dg.MetadataValue.path(report.report),
    }


def comparison_metadata(policies: pl.DataFrame, plot: "Chart") -> Facts:
    """The policies' table and their plot of kg against hours."""
    from curtail_pipeline.emissions.charts import to_png

    return {"policies": table(policies), "plot": image(to_png(plot, scale=0.8), "kgCO2 against hours, by policy")}
