"""The checkpoints as the command line lists them: what the store's index knows, so that ten thousand take a second."""

import json
from collections.abc import Callable
from dataclasses import dataclass

from curtail_pipeline.emissions.basis import label_of
from curtail_pipeline.emissions.grams import totals
from curtail_pipeline.emissions.ledger_table import parse_ledger
from curtail_pipeline.stages.evaluate import evaluation_key
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoint_index import CheckpointSummary
from curtail_pipeline.storage.records import Record
from curtail_pipeline.storage.tables import ledger_key
from curtail_pipeline.times import iso
from curtail_pipeline.training.heldout_loss import Evaluation


@dataclass(frozen=True)
class CheckpointRow:
    """A committed checkpoint, as the command line lists it."""

    key: str
    parent: str | None
    mode: str
    members: list[str]
    rounds: int
    steps: int
    """Of the whole lineage."""
    tokens: int
    """Of its own segment."""
    total_tokens: int
    start: str
    end: str
    stop_reason: str
    weights_sha256: str | None
    heldout_loss: float | None
    """nat per token; None while it was not evaluated."""
    kwh: float | None
    """None while it was not accounted."""
    co2_g: float | None
    basis: str | None
    """What energy and CO2 rest on; None where nothing was drawn or accounted."""


class _Used(Record):
    """Sums of a checkpoint's ledger."""

    kwh: float
    co2_g: float | None
    basis: str | None


def checkpoint_rows(project: Project) -> list[CheckpointRow]:
    """A row per committed checkpoint with loss, energy and CO2, in order. Files that have not changed are not read.

    Raises:
        StoreError: a stored ledger cannot be read.
        MessageError: a stored evaluation cannot be read.
    """
    found = project.checkpoints.summaries()
    keys = [summary.key for summary in found]
    losses = _indexed(project, "evaluation", keys, evaluation_key, _loss)
    used = _indexed(project, "energy", keys, ledger_key, _used)
    return [_row(summary, losses[summary.key], used[summary.key]) for summary in found]


def _indexed(
    project: Project,
    kind: str,
    keys: list[str],
    key_of: Callable[[str], str],
    read: Callable[[str, bytes], str | None],
) -> dict[str, str | None]:
    return dict(project.checkpoints.index.look(kind, keys, key_of, read))


def _loss(key: str, data: bytes) -> str | None:
    return json.dumps(Evaluation.read(data, evaluation_key(key)).loss)


def _used(key: str, data: bytes) -> str | None:
    table = parse_ledger(data, ledger_key(key))
    found = totals(table)
    return _Used(kwh=found.kwh, co2_g=found.co2_g, basis=label_of(table)).model_dump_json()


def _row(summary: CheckpointSummary, loss: str | None, ledger: str | None) -> CheckpointRow:
    used = _Used.model_validate_json(ledger) if ledger is not None else None
    return CheckpointRow(
        key=summary.key,
        parent=summary.parent,
        mode=summary.mode,
        members=summary.members,
        rounds=summary.rounds,
        steps=summary.steps,
        tokens=summary.tokens,
        total_tokens=summary.total_tokens,
        start=iso(summary.start),
        end=iso(summary.end),
        stop_reason=summary.stop_reason,
        weights_sha256=summary.weights_sha256,
        heldout_loss=json.loads(loss) if loss is not None else None,
        kwh=used.kwh if used else None,
        co2_g=used.co2_g if used else None,
        basis=used.basis if used else None,
    )
