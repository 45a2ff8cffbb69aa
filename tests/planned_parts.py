"""What an experiment's policy makes of its recorded signal, from the clock's start to its end."""

from datetime import timedelta
from pathlib import Path

import polars as pl

from curtail_pipeline.scheduling.timing import Finished, Pause, SegmentPlan, advance
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.records import Json
from curtail_pipeline.times import days_between, midnight
from curtail_pipeline.windows.rules import derive_windows


def planned(given: Experiment | dict[str, Json], home: Path) -> list[SegmentPlan | Pause]:
    """Segments and pauses, as a headless run would have them."""
    experiment = parse_experiment(given, "case") if isinstance(given, dict) else given
    project = Project.open(experiment, "headless", home)
    assert project.span is not None
    traces = pl.concat([project.provider.fetch(region, *project.span) for region in experiment.regions])
    days = days_between(*project.span)
    windows, _ = derive_windows(
        traces, experiment.sites, experiment.policy, start=midnight(days[0]), end=midnight(days[-1]) + timedelta(days=1)
    )
    view = View.build(experiment, traces, windows)
    found: list[SegmentPlan | Pause] = []
    now, done, previous = project.start, 0, {}
    while True:
        part = advance(view, experiment, now, Job(done, experiment.job.steps, project.start, None, previous))
        if isinstance(part, Finished):
            return found
        found.append(part)
        now, previous = part.end, dict(part.sites)
        done += part.steps if isinstance(part, SegmentPlan) else 0
