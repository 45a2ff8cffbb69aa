"""From the library's results to what the Dagster UI shows."""

import base64
import json
import math
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl
import polars.selectors as cs

from curtail_pipeline.corpus.corpus_records import ShardManifest
from curtail_pipeline.corpus.tokenizer import TokenizerInfo
from curtail_pipeline.emissions.basis import label_of
from curtail_pipeline.emissions.formats import percent, short
from curtail_pipeline.emissions.grams import totals
from curtail_pipeline.errors import CurtailError
from curtail_pipeline.federation.plan import read_journal
from curtail_pipeline.federation.progress import merged_round
from curtail_pipeline.orchestration.column_texts import COLUMNS
from curtail_pipeline.orchestration.story import first_line
from curtail_pipeline.settings.trace_settings import UNITS
from curtail_pipeline.signals.checks import CheckOutcome
from curtail_pipeline.simulation.policy_table import by_rank
from curtail_pipeline.stages.derive_windows import DerivedDay
from curtail_pipeline.stages.ingest import IngestedDay
from curtail_pipeline.stages.ingest_days import Attempt, Ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import WEIGHTS_FILE
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.tables import REPORT_KEY, trace_key, windows_key
from curtail_pipeline.times import midnight
from curtail_pipeline.windows.day_tables import day_summary, diff_windows, plot_windows

if TYPE_CHECKING:
    from curtail_pipeline.stages.branch import Branch
    from curtail_pipeline.stages.replay_check import Replayed
    from curtail_pipeline.stages.run_report import RunSummary
    from curtail_pipeline.training.heldout_loss import Evaluation

Facts = dict[str, dg.MetadataValue | str | int | float | bool]
"""What the UI shows of a materialisation, by name."""

SEVERITY = {True: dg.AssetCheckSeverity.ERROR, False: dg.AssetCheckSeverity.WARN}


def table(rows: pl.DataFrame) -> dg.MetadataValue:
    """A small frame as a table in the UI."""
    if rows.is_empty():
        return dg.MetadataValue.text("none")
    rounded = rows.with_columns(cs.float().round_sig_figs(3))
    records = [dg.TableRecord(json.loads(json.dumps(row, default=str))) for row in rounded.iter_rows(named=True)]
    return dg.MetadataValue.table(records)


def image(png: bytes, alt: str) -> dg.MetadataValue:
    return dg.MetadataValue.md(f"![{alt}](data:image/png;base64,{base64.b64encode(png).decode()})")


def significant(value: float, digits: int = 3) -> float:
    """Rounded for the eye; what is stored elsewhere keeps every digit."""
    return float(f"{value:.{digits}g}") if math.isfinite(value) else value


def brief(sha256: str) -> str:
    """The first of a hash, as people compare it."""
    return sha256.removeprefix("sha256:")[:12]


def table_facts(project: Project, key: str, rows: pl.DataFrame) -> Facts:
    """Where a stored table is, relative to the store, and what its columns are."""
    return {
        "dagster/row_count": len(rows),
        "dagster/uri": key,
        "dagster/relation_identifier": f"{project.experiment.name}.{key.split('/', 1)[0]}",
        "dagster/column_schema": dg.MetadataValue.table_schema(
            dg.TableSchema(
                [dg.TableColumn(name, str(dtype), description=COLUMNS.get(name)) for name, dtype in rows.schema.items()]
            )
        ),
    }


# Signals


def check_result(outcome: CheckOutcome) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        check_name=outcome.name,
        passed=outcome.passed,
        severity=SEVERITY[outcome.blocking],
        description=outcome.description,
        metadata=outcome.metadata,
    )


def check_event(outcome: CheckOutcome, partition: str) -> dg.AssetCheckEvaluation:
    """A check of one region's day, for a run that refreshes many of them."""
    return dg.AssetCheckEvaluation(
        asset_key=dg.AssetKey("carbon_traces"),
        check_name=outcome.name,
        passed=outcome.passed,
        severity=SEVERITY[outcome.blocking],
        description=outcome.description,
        metadata=outcome.metadata,
        blocking=outcome.blocking,
        partition=partition,
    )


def trace_events(ingested: Ingested, project: Project) -> Iterator[dg.AssetMaterialization | dg.AssetCheckEvaluation]:
    """The trace, if it was stored, and then its checks: they count for the materialisation before them."""
    found = ingested.found
    if found is None:
        return
    day = found.day.isoformat()
    key = dg.MultiPartitionKey({"day": day, "region": found.region})
    if ingested.stored:
        yield dg.AssetMaterialization(
            "carbon_traces",
            partition=key,
            metadata={
                **trace_metadata(found),
                **table_facts(project, trace_key(day, found.region), found.table),
            },
        )
    for outcome in found.checks:
        yield check_event(outcome, key)


def trace_metadata(found: IngestedDay) -> Facts:
    """What is known of a day's trace; only what changes from day to day is a number, which the UI plots."""
    known, changes = found.metadata, ("revised", "filled", "withdrawn", "added")
    shown: Facts = {
        "source": str(known["source"]),
        "signals": str(known["kinds"]),
        **_means(found.table),
        "missing values": int(known["nulls"]),
        "duplicates": f"{known['duplicates']}, of them {known['conflicts']} with different values",
        "estimated": percent(float(known["estimated_share"])),
        "against the stored day": ", ".join(f"{known[name]} {name}" for name in changes),
    }
    if "largest_change_at" in known:
        shown["largest revision"] = f"{float(known['largest_change']):.3g} at {known['largest_change_at']}"
    if "forecasts_issued" in known:
        shown["forecasts issued"] = str(known["forecasts_issued"])
    if "warnings" in known:
        shown["warnings"] = str(known["warnings"])
    return shown


def _means(table: pl.DataFrame) -> Facts:
    """Per signal, in its unit."""
    means = table.drop_nulls("value").group_by("kind", maintain_order=True).agg(pl.col("value").mean())
    return {
        f"mean {kind.replace('_', ' ')} ({UNITS[kind][0]})": significant(value) for kind, value in means.iter_rows()
    }


def ingestion_metadata(attempts: Sequence[Attempt]) -> Facts:
    """Which regions of a day were stored, and why others were not."""
    failed = [attempt for attempt in attempts if attempt.reason is not None]
    rows = [{"region": each.region, "stored": each.reason is None, "reason": each.reason or ""} for each in attempts]
    return {
        "stored": len(attempts) - len(failed),
        "failed": len(failed),
        "regions": table(pl.DataFrame(rows, schema={"region": pl.String, "stored": pl.Boolean, "reason": pl.String})),
    }


def window_metadata(derived: DerivedDay, plot: bool = True) -> Facts:
    """Hours per site, the windows, what changed and, if wanted, a plot of signal and windows (about 0.5 s of CPU)."""
    start = midnight(derived.day)
    end = start + timedelta(days=1)
    hours = day_summary(derived.table, derived.sites, start, end).with_columns(
        fails_closed=pl.col("region").replace_strict(derived.missing, default="", return_dtype=pl.String)
    )
    metadata: Facts = {
        "curtailed (site-hours)": significant(float(hours["hours"].sum())),
        "hours by site": table(hours),
        "windows": table(derived.table.select("site", "start", "end", "opened_by", "closed_by")),
        "later days": "have to be derived again" if derived.state_changed else "stay as they are",
    }
    if derived.hole:
        metadata["hole"] = (
            f"{derived.hole} days before this one have no windows: derived from the state of "
            f"{derived.derivation.after}, and again as soon as they have"
        )
    if plot and not derived.traces.is_empty():
        from curtail_pipeline.emissions.chart_style import to_png

        chart = plot_windows(derived.traces, derived.table, start=start, end=end)
        metadata["signal and windows"] = image(to_png(chart, scale=0.7), "signal with windows shaded")
    if derived.previous is not None:
        metadata["against the stored day"] = table(diff_windows(derived.previous, derived.table))
    return metadata


def windows_facts(derived: DerivedDay, project: Project, plot: bool = True) -> Facts:
    """All that the UI shows of a day's windows."""
    key = windows_key(derived.day.isoformat())
    return {**window_metadata(derived, plot), **table_facts(project, key, derived.table)}


# Text


def log_slices(log: dg.DagsterLogManager) -> Callable[[int, int], None]:
    """Progress of a shard build for the Dagster log."""
    return lambda done, total: log.info(f"{done} of {total} slices of the corpus read")


def shards_metadata(manifest: ShardManifest) -> Facts:
    """What a target has of the text, and the whole of its manifest."""
    return {
        "tokens": f"{short(manifest.tokens)} in {len(manifest.files)} files of {manifest.dtype}",
        "documents": f"{short(manifest.documents)}, {short(manifest.bytes)}B of UTF-8",
        "vocabulary": f"{manifest.vocab_size:,}",
        "tokenizer": brief(manifest.tokenizer_sha256),
        "dealing": brief(manifest.dealing_sha256),
        "dagster/row_count": manifest.documents,
        "manifest": dg.MetadataValue.json(manifest.model_dump(mode="json")),
    }


def tokenizer_metadata(info: TokenizerInfo) -> Facts:
    """What the tokenizer is."""
    return {
        "vocabulary": f"{info.vocab_size:,} tokens, kept as {info.dtype}",
        "separator": f"{info.separator} ({info.separator_id})",
        "tokenizer.json": brief(info.sha256),
        "all of it": dg.MetadataValue.json(info.model_dump(mode="json")),
    }


# Training


def checkpoint_metadata(project: Project, manifest: Manifest) -> Facts:
    """What a checkpoint is, with its picture; the manifest, with every hash in full, is one click away."""
    merged = [merged_round(line) for line in read_journal(project.store, f"checkpoints/{manifest.key}")]
    shown: Facts = {
        "picture": checkpoint_image(project, manifest.key),
        "mode": manifest.mode,
        "members": ", ".join(manifest.members) or "none",
        "parent": manifest.parent or "none",
        "stop reason": manifest.stop_reason,
        "trained": f"{manifest.rounds:,} rounds, {manifest.steps.end - manifest.steps.begin:,} steps, "
        f"{short(manifest.tokens.segment)} tokens",
        "since the start": f"{manifest.steps.end:,} steps, {short(manifest.tokens.total)} tokens",
        "start": dg.MetadataValue.timestamp(manifest.start),
        "end": dg.MetadataValue.timestamp(manifest.end),
        "weights": brief(manifest.files[WEIGHTS_FILE].sha256),
        "folder": f"checkpoints/{manifest.key}",
        "manifest": _whole(manifest),
    }
    losses = [event.loss for event in merged if event.loss is not None]
    speeds = [event.tokens_per_s for event in merged if event.tokens_per_s is not None]
    if losses:
        shown["training loss (nat/token)"] = significant(losses[-1])
    if speeds:
        shown["speed (tokens/s)"] = significant(sum(speeds) / len(speeds))
    return shown


def _whole(manifest: Manifest) -> dg.MetadataValue:
    """A manifest but for its power intervals, which are many."""
    return dg.MetadataValue.json(
        {**manifest.model_dump(mode="json", exclude={"intervals"}), "intervals": len(manifest.intervals)}
    )


def checkpoint_image(project: Project, key: str) -> dg.MetadataValue:
    """Its picture, as far as it is known by now; never a reason for a trained segment to fail."""
    from curtail_pipeline.stages.picture import checkpoint_picture

    try:
        return image(checkpoint_picture(project, key), f"{key}: loss, tokens, power and gCO2 by site")
    except CurtailError as error:
        return dg.MetadataValue.text(f"cannot be drawn: {first_line(error)}")


def checkpoint_observation(project: Project, key: str) -> dg.AssetObservation:
    """For the checkpoint's page: the picture with all that was found out since it was trained."""
    return dg.AssetObservation(
        "aggregated_checkpoint",
        partition=key,
        description="evaluated and accounted",
        metadata={"picture": checkpoint_image(project, key)},
    )


def evaluation_metadata(found: "Evaluation") -> Facts:
    """Of one measure in three units the first is a number, which the UI plots."""
    return {
        "held-out loss (nat/token)": significant(found.loss, 4),
        "perplexity": f"{found.perplexity:.3g}",
        "bits per byte": f"{found.bits_per_byte:.3g}",
        "predicted": f"{short(found.tokens)} tokens",
    }


def ledger_metadata(ledger: pl.DataFrame) -> Facts:
    """Sums of a checkpoint's ledger, and the ledger."""
    found = totals(ledger)
    shown: Facts = {"energy (kWh)": significant(found.kwh)}
    if found.co2_g is not None:
        shown["emissions (gCO2)"] = significant(found.co2_g)
    return {
        **shown,
        "inside curtailment windows": percent(found.curtailed_share),
        "without an accounting signal": f"{found.unaccounted_kwh:.3g} kWh",
        "energy and CO2 are": label_of(ledger) or "none",
        "ledger": table(ledger),
    }


def replay_metadata(project: Project, replayed: "Replayed") -> Facts:
    """What the committed checkpoint is, and whether repeating it gave the same weights; hashes in full a click away."""
    return {
        **checkpoint_metadata(project, replayed.manifest),
        "on demand": "replay",
        "identical": replayed.identical,
        "committed weights": brief(replayed.committed_sha256),
        "replayed weights": brief(replayed.replayed_sha256),
        "replayed_steps": replayed.steps,
        "seconds": significant(replayed.seconds),
        "inner state started fresh": ", ".join(replayed.fresh_states) or "at no site",
        "replay": dg.MetadataValue.json(
            {"committed_sha256": replayed.committed_sha256, "replayed_sha256": replayed.replayed_sha256}
        ),
    }


def branch_metadata(project: Project, branch: "Branch", heldout: "Evaluation") -> Facts:
    """What a branch's newest checkpoint is; the committed one that it starts from is named beside it."""
    done = branch.manifest
    return {
        "branch": branch.name,
        "branch trained": f"{done.rounds:,} rounds, {done.steps.end - done.steps.begin:,} steps, "
        f"{short(done.tokens.segment)} tokens",
        "branch held-out loss (nat/token)": significant(heldout.loss, 4),
        "branch weights": brief(done.files[WEIGHTS_FILE].sha256),
        "branch folder": f"branches/{branch.name}",
        "branch manifest": _whole(done),
    }


def report_metadata(report: "RunSummary", project: Project) -> Facts:
    """Totals, baselines and where the page is."""
    shown: Facts = {}
    if report.kwh is not None:
        shown["energy (kWh)"] = significant(report.kwh)
    if report.co2_g is not None:
        shown["emissions (gCO2)"] = significant(report.co2_g)
    return {
        **shown,
        "inside curtailment windows": percent(report.curtailed_share),
        "without an accounting signal": f"{report.unaccounted_kwh or 0.0:.3g} kWh",
        "trained": f"{report.steps:,} steps, {short(report.tokens)} tokens",
        "energy and CO2 are": report.basis or "none",
        "signal": "synthetic: a model, not a grid" if report.synthetic else "recorded",
        "baselines": table(pl.DataFrame(report.baselines)),
        "page": REPORT_KEY,
    }


def comparison_metadata(policies: pl.DataFrame, plot: bytes | None) -> Facts:
    """The policies' table, those that finished first, and their plot (PNG) of kg against hours."""
    drawn = {} if plot is None else {"kgCO2 against hours": image(plot, "kgCO2 against hours, by policy")}
    return {"policies": table(by_rank(policies)), **drawn}
