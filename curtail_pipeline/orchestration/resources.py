"""Dagster resources: the opened project and where progress is reported."""

import dagster as dg

from curtail_pipeline.stages.project import Project, check_clock
from curtail_pipeline.stages.run_events import Event


class PipelineResource(dg.ConfigurableResource):
    """Opens the experiment on its home. Opening is cheap: no network, no torch."""

    experiment: str
    clock: str = "live"
    """`live`, `replay` or `headless`."""

    def project(self) -> Project:
        return Project.open(self.experiment, check_clock(self.clock))


def silent(_: Event) -> None:
    """The default: progress goes to the Dagster log only."""
