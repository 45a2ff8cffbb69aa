"""Rows that say how long they last: events are refused, intervals of one cadence are not."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from file_instants import HOUR, read

from curtail_pipeline.errors import TraceError

START = datetime(2024, 6, 3)
QUARTER = HOUR / 4
EVENTS = [(10.0, 4.0), (22.25, 0.75), (33.5, 3.5), (40.0, 0.25), (47.0, 1.0)]
"""Begin and length in hours."""
SAID = "rows last longer than the 900 s that a value would hold, e.g. 4 h from 2024-06-03 10:00:00, as .* says"


def rows(form: str, spans: Sequence[tuple[float, float]] = EVENTS) -> list[str]:
    found = []
    for k, (begin, length) in enumerate(spans):
        first = START + begin * HOUR
        found.append(form.format(first, first + length * HOUR, 100 + k))
    return found


@pytest.mark.parametrize(
    ("header", "form", "given"),
    [
        ("start,end,A", "{0:%Y-%m-%dT%H:%M}Z,{1:%Y-%m-%dT%H:%M}Z,{2}", {}),
        ("Beginn,Ende,A", "{0:%d.%m.%Y %H:%M},{1:%d.%m.%Y %H:%M},{2}", {"time_format": "%d.%m.%Y %H:%M"}),
        ("BEGINN_DATUM,BEGINN_UHRZEIT,ENDE_DATUM,ENDE_UHRZEIT,A", "{0:%Y-%m-%d},{0:%H:%M},{1:%Y-%m-%d},{1:%H:%M},{2}",
         {"hour_column": "BEGINN_UHRZEIT"}),
        ("time,A", "{0:%Y-%m-%d %H:%M} - {1:%Y-%m-%d %H:%M},{2}", {}),
        ("time,A", "{0:%Y-%m-%d %H:%M} - {1:%H:%M},{2}", {}),
    ],
)  # fmt: skip
def test_events_are_refused_however_their_ends_are_written(csv: Any, header: str, form: str, given: dict) -> None:
    path = csv(header, *rows(form))
    for missing in ({}, {"missing": "zero"}, {"missing": "zero", "cadence_s": 900}):
        with pytest.raises(TraceError, match=SAID):
            read(path, kind="curtailed_power", columns={"A": "A"}, **given, **missing)


@pytest.mark.parametrize("step", [QUARTER, HOUR])
@pytest.mark.parametrize("form", ["{0:%Y-%m-%dT%H:%M}Z,{1:%Y-%m-%dT%H:%M}Z,{2}", "{0:%Y-%m-%d %H:%M},{1:%H:%M},{2}"])
def test_intervals_of_one_cadence_are_values(csv: Any, step: timedelta, form: str) -> None:
    hours = step / HOUR
    spans = [(k * hours, hours) for k in range(48)]
    assert len(read(csv("from,to,A", *rows(form, spans)), columns={"A": "A"})) == 48
    thinned = [span for k, span in enumerate(spans) if k % 5 not in (1, 2)]
    assert len(read(csv("from,to,A", *rows(form, thinned)), columns={"A": "A"})) == len(thinned)


def test_a_source_that_became_finer_and_two_regions_of_different_cadence_are_values(csv: Any) -> None:
    form = "{0:%Y-%m-%dT%H:%M}Z,{1:%Y-%m-%dT%H:%M}Z,{2}"
    spans = [(float(k), 1.0) for k in range(48)] + [(48 + k / 4, 0.25) for k in range(96)]
    assert len(read(csv("from,to,A", *rows(form, spans)), columns={"A": "A"})) == 48 * 4 + 96
    long = [f"{row.rpartition(',')[0]},A,{k}" for k, row in enumerate(rows(form, [(float(k), 1.0) for k in range(24)]))]
    long += [f"{row.rpartition(',')[0]},B,{k}" for k, row in enumerate(rows(form, [(k / 4, 0.25) for k in range(96)]))]
    assert len(read(csv("from,to,region,value", *long))) == 24


@pytest.mark.parametrize(("day", "hours"), [("2024-03-31", 23), ("2024-10-27", 25)])
def test_a_local_end_on_a_day_with_a_clock_change_is_no_event(csv: Any, day: str, hours: int) -> None:
    clock = [k + (k > 1 if hours == 23 else -(k > 2)) for k in range(hours + 1)]
    stamps = [datetime.fromisoformat(day) + hour * HOUR for hour in clock]
    lines = [f"{a:%Y-%m-%d %H:%M},{b:%Y-%m-%d %H:%M},{k}" for k, (a, b) in enumerate(pairwise(stamps))]
    assert len(read(csv("from,to,A", *lines), columns={"A": "A"}, timezone="Europe/Berlin")) == hours
