"""When the runs of segments were requested and began, for who measures the pauses between them."""

from pathlib import Path

import dagster as dg

from curtail_pipeline.orchestration.open_databases import DATABASES
from curtail_pipeline.orchestration.runs import CHECKPOINT_TAG, SEGMENT_ASSET
from curtail_pipeline.storage.records import Record


class SegmentStart(Record):
    """Seconds since 1970."""

    key: str
    requested: float
    """The sensor's request."""
    begun: float
    """Its process has planned nothing yet, and all that it needs is imported."""


def segment_starts(dagster_home: Path) -> list[SegmentStart]:
    """Of the segments' runs that have begun, in order; none where there is no instance yet."""
    if not _is_made(dagster_home):
        return []
    found = []
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        for record in instance.get_run_records(ascending=True):
            run = record.dagster_run
            steps = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
            begun = [entry.timestamp for entry in steps if entry.step_key == SEGMENT_ASSET]
            if CHECKPOINT_TAG in run.tags and begun:
                requested = record.create_timestamp.timestamp()
                found.append(SegmentStart(key=run.tags[CHECKPOINT_TAG], requested=requested, begun=begun[0]))
    return found


def first_run(dagster_home: Path) -> float | None:
    """When the instance's first run was created (seconds since 1970); None while there is none."""
    if not _is_made(dagster_home):
        return None
    with dg.DagsterInstance.from_config(str(dagster_home)) as instance:
        return next((record.create_timestamp.timestamp() for record in instance.get_run_records(ascending=True)), None)


def _is_made(dagster_home: Path) -> bool:
    """Whether the instance's tables are there; the first to open it makes them."""
    return all((dagster_home / name).exists() for name in DATABASES)
