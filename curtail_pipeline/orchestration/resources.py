"""Dagster resources: the opened project and where progress is reported."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from curtail_pipeline.stages.project import Project, check_clock


class PipelineResource(dg.ConfigurableResource):
    """Opens the experiment on its home. Opening is cheap: no network, no torch."""

    experiment: str
    clock: str = "live"
    """`live`, `replay` or `headless`."""

    def project(self) -> Project:
        return Project.open(self.experiment, check_clock(self.clock))


Progress = Callable[[Mapping[str, Any]], None]
"""Takes `{"event": ..., ...}` while a segment runs."""


def silent(_: Mapping[str, Any]) -> None:
    """The default: progress goes to the Dagster log only."""
