"""Dagster resources: the opened project and where progress is reported."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg

from curtail_pipeline.orchestration.open_databases import databases_open
from curtail_pipeline.settings.experiment import experiment_file
from curtail_pipeline.stages.project import Project, check_clock
from curtail_pipeline.stages.run_events import Event
from curtail_pipeline.storage.home import homes_root
from curtail_pipeline.storage.stores import Connect

Stamp = tuple[int, int, int]
"""Size, modification time and inode of a file."""


@dataclass(frozen=True)
class _Opened:
    project: Project
    stamp: Stamp
    """Of the experiment's file, before it was read."""


_OPENED: dict[tuple[Path, str, Path], _Opened] = {}
"""By experiment file, clock and folder of the homes. Dagster makes a resource anew for every run and every tick."""
_LOCK = threading.Lock()


class PipelineResource(dg.ConfigurableResource):
    """The experiment, opened on its home once per process; opened again when its file or a trace file has changed."""

    experiment: str
    clock: str = "live"
    """`live`, `replay` or `headless`."""

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator["PipelineResource"]:
        """For a run, whose events are then written quickly."""
        if context.instance is None or context.run is None:
            yield self
            return
        with databases_open(context.instance, context.run.run_id):
            yield self

    def project(self) -> Project:
        file = experiment_file(self.experiment)
        key = (file.resolve(), self.clock, homes_root())
        with _LOCK:
            stamp = _stamp(file)
            opened = _OPENED.get(key)
            if opened is None or opened.stamp != stamp or not _current(opened.project):
                found = Project.open(self.experiment, check_clock(self.clock), connect=self._connect())
                opened = _OPENED[key] = _Opened(found, stamp)
            return opened.project

    def nested(self) -> "dict[str, dg.ConfigurableResource]":
        """Resources by the names under which Dagster shows them beside this one."""
        return {}

    def _connect(self) -> Connect | None:
        """Makes the client of a store in a bucket; None for the usual AWS settings."""
        return None


def serve_opened(project: Project) -> None:
    """Have the resources of this process use a project that is open already."""
    file = project.home.experiment_file
    with _LOCK:
        _OPENED[file.resolve(), project.clock_mode, homes_root()] = _Opened(project, _stamp(file))


def _stamp(file: Path) -> Stamp:
    try:
        found = file.stat()
    except OSError:
        return (0, 0, 0)  # opening it says what is wrong
    return found.st_size, found.st_mtime_ns, found.st_ino


def _current(project: Project) -> bool:
    return project.home.exists() and project.index.unchanged()


def silent(_: Event) -> None:
    """The default: progress goes to the Dagster log only."""
