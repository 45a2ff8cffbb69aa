"""Dagster resources: the opened project and where progress is reported."""

from collections.abc import Callable, Mapping
from typing import Any

import dagster as dg

from curtail_pipeline.project import Project


class PipelineResource(dg.ConfigurableResource):  # type: ignore[type-arg]
    """Opens the experiment on its home. Opening is cheap: no network, no torch."""

    experiment: str
    clock: str = "live"

    def project(self) -> Project:
        return Project.open(self.experiment, self.clock)


Progress = Callable[[Mapping[str, Any]], None]
"""Takes `{"event": ..., ...}` while a segment runs."""


def silent(_: Mapping[str, Any]) -> None:
    """The default: progress goes to the Dagster log only."""
