"""Energy, CO2 and loss of an experiment's checkpoints, put together from the store."""

from collections.abc import Sequence
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from curtail_pipeline.corpus.ledger import Ledger
from curtail_pipeline.emissions.baselines import always_on_baselines, baselines_table
from curtail_pipeline.emissions.power import intervals_table, ledger, totals
from curtail_pipeline.evaluation import stored_loss
from curtail_pipeline.project import Project, days_between
from curtail_pipeline.storage.tables import read_table
from curtail_pipeline.times import iso


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
    for row in project.checkpoints.list():
        sums = totals(ledgers.filter(pl.col("checkpoint") == row["key"])) if ledgers is not None else {}
        rows.append(
            {
                **row,
                "start": iso(row["start"]),
                "end": iso(row["end"]),
                "heldout_loss": stored_loss(project, row["key"]),
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
        "synthetic": project.experiment.traces.provider == "synthetic",
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


def report_path(project: Project) -> Path:
    return project.store.path("report/index.html")


def show_checkpoint(project: Project, key: str) -> dict[str, Any]:
    """The manifest and what of the text has been used: tokens per site, epoch and share."""
    shown = project.checkpoints.show(key)
    used = Ledger.from_json(shown["ledger"])
    length = project.experiment.training.sequence_length
    total = max(1, used.tokens(length))
    shown["consumed"] = {
        site: {
            "tokens": used.sequences(site) * length,
            "epoch": used.epoch(site),
            "share": round(used.sequences(site) * length / total, 4),
        }
        for site in shown["ledger"]
    }
    return {**shown, "heldout_loss": stored_loss(project, key)}
