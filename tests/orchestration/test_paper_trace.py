"""The laptop experiment on the published marginal intensities: who trains when follows from the trace alone."""

import csv
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from planned_parts import planned

from curtail_pipeline.scheduling.timing import Pause, SegmentPlan
from curtail_pipeline.settings.experiment import load_experiment, with_traces

STEP = timedelta(minutes=5)
EXIT = timedelta(seconds=600)
START_UP = timedelta(seconds=250)


def rule_by_hand(path: Path, region: str) -> list[tuple[datetime, datetime]]:
    """[first, last) of a site's training: below 100 g/kWh, 600 s of exit delay, 250 s of start-up; a plain loop."""
    with path.open() as stream:
        rows = [(datetime.fromisoformat(row["point_time"]), float(row[region])) for row in csv.DictReader(stream)]
    windows, opened, above = [], None, None
    for stamp, value in rows:
        if opened and above and stamp >= above + EXIT:
            windows.append((opened, above + EXIT))
            opened = above = None
        if value < 100:
            opened, above = opened or stamp, None
        elif opened and above is None:
            above = stamp
    if opened:
        windows.append((opened, (above + EXIT) if above else rows[-1][0] + STEP))
    return [(start + START_UP, end) for start, end in windows]


@pytest.fixture(scope="module")
def walk(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[SegmentPlan | Pause]:
    trace = test_data / "paper" / "mci.csv"
    experiment = with_traces(load_experiment("laptop"), trace)
    return planned(experiment, tmp_path_factory.mktemp("home"))


def test_members_are_those_of_the_rule_on_the_trace(walk: list[SegmentPlan | Pause], test_data: Path) -> None:
    path = test_data / "paper" / "mci.csv"
    trains = {site.name: rule_by_hand(path, site.region) for site in load_experiment("laptop").sites}
    for step in walk:
        wanted = {name for name, spans in trains.items() if any(a <= step.start < b for a, b in spans)}
        members = set(step.members) if isinstance(step, SegmentPlan) else set()
        assert members == wanted, step.start


def test_every_mode_occurs_and_time_has_no_hole(walk: list[SegmentPlan | Pause]) -> None:
    modes = {step.mode if isinstance(step, SegmentPlan) else "pause" for step in walk}
    assert modes == {"pause", "local", "federated"}
    assert all(first.end == second.start for first, second in pairwise(walk))


def test_sites_leave_at_the_end_of_their_window(walk: list[SegmentPlan | Pause], test_data: Path) -> None:
    """No training after the rule's end, but for the step that was under way."""
    path = test_data / "paper" / "mci.csv"
    for site in load_experiment("laptop").sites:
        spans = rule_by_hand(path, site.region)
        slack = timedelta(seconds=1 / site.steps_per_s)
        for step in walk:
            for interval in step.intervals:
                if interval.site == site.name and interval.state == "training":
                    assert any(a <= interval.start and interval.end <= b + slack for a, b in spans), interval
