"""Window rules against a slow, plain reading of their definition, minute by minute."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import numpy as np
import polars as pl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.rule_settings import RuleSettings, SignalRule
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.times import FOREVER
from curtail_pipeline.windows.candidates import history_waits
from curtail_pipeline.windows.rules import RuleState, derive_windows, merge_days

START = datetime(2026, 1, 11, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
LENGTH = 240
SITES = [
    Site(name=name, region=region, training_kw=1, idle_kw=0, steps_per_s=1)
    for name, region in (("a", "R1"), ("b", "R2"), ("b2", "R2"))
]
POLICY = PolicySettings(name="hysteresis")

LEVELS = {
    "marginal_intensity": [40.0, 99.9, 100.0, 110.0, 124.9, 125.0, 600.0, None],
    "price": [-20.0, 0.0, 0.1, 5.0, 5.1, 80.0, None],
    "curtailed_power": [0.0, 4.9, 5.0, 9.9, 10.0, 50.0, None],
}


@st.composite
def rows(draw, kind):
    """Stamps in minutes, values and estimated flags of one signal: mostly every 5 minutes, with gaps."""
    steps = draw(st.lists(st.sampled_from([5, 5, 5, 5, 5, 10, 15, 30, 3]), min_size=0, max_size=45))
    out, minute = [], draw(st.integers(0, 10))
    for step in steps:
        if minute >= LENGTH:
            break
        out.append((minute, draw(st.sampled_from(LEVELS[kind])), draw(st.booleans())))
        minute += step
    return out


@st.composite
def signals(draw, kind):
    optional = st.one_of(st.none(), st.sampled_from([0, 300, 600, 1200]))
    return SignalRule(
        kind=kind,
        exit_delay_s=draw(optional),
        max_signal_age_s=draw(st.one_of(st.none(), st.sampled_from([240, 300, 900]))),
        estimated_limit_s=draw(optional),
    )


@st.composite
def cases(draw, min_duration=True):
    kinds = draw(st.lists(st.sampled_from(list(LEVELS)), min_size=1, max_size=3, unique=True))
    parts = [draw(signals(kind)) for kind in kinds]
    required = draw(st.sampled_from([0, 0, 600, 1200])) if min_duration else 0
    form = draw(st.sampled_from(["any_of", "all_of"]))
    rule = RuleSettings(**{form: parts}, min_duration_s=required)
    traces = {(region, kind): draw(rows(kind)) for region in ("R1", "R2") for kind in kinds}
    return rule, traces


def frame(traces):
    return pl.DataFrame(
        [
            (START + m * MINUTE, region, value, kind, estimated)
            for (region, kind), content in traces.items()
            for m, value, estimated in content
        ],
        schema={
            "time": pl.Datetime("us", "UTC"),
            "region": pl.String,
            "value": pl.Float64,
            "kind": pl.String,
            "estimated": pl.Boolean,
        },
        orient="row",
    )


def derive(rule, traces, end=LENGTH, start=0, state=None):
    return derive_windows(
        traces if isinstance(traces, pl.DataFrame) else frame(traces),
        SITES,
        POLICY,
        start=START + start * MINUTE,
        end=START + end * MINUTE,
        state=state,
        rules={"R1": rule, "R2": rule},
    )


def believed(rule, content):
    """Rows that count, each with the minute from which it is too old."""
    out, shortest, previous, estimated_from = [], None, None, None
    for minute, value, estimated in content:
        if previous is not None:
            shortest = min(minute - previous, shortest or minute - previous)
        previous = minute
        if value is None:
            continue
        age = rule.max_signal_age_s / 60 if rule.max_signal_age_s else 2 * (shortest or 5)
        until = minute + age
        if not estimated:
            estimated_from = None
        elif rule.estimates_s is not None:
            estimated_from = minute if estimated_from is None else estimated_from
            until = min(until, estimated_from + rule.estimates_s / 60)
        if until > minute:
            out.append((minute, value, until))
    return out


def curtailed_minutes(rule, content):
    """Minute by minute, whether one signal counts as curtailed."""
    known = believed(rule, content)
    inside, left_at, last, out = False, None, None, []
    for minute in range(LENGTH):
        new = [row for row in known if row[0] == minute]
        fresh = bool(new) or (last is not None and minute < last[2])
        if last is not None and not (last[2] >= minute):
            inside, left_at = False, None
        if new:
            last = new[0]
            value = last[1]
            below = rule.kind != "curtailed_power"
            strict = rule.kind == "marginal_intensity"
            enters = (value < 100 if strict else value <= 0) if below else value >= 10
            leaves = (value >= 125 if strict else value > 5) if below else value < 5
            if enters:
                inside, left_at = True, None
            elif leaves and inside and left_at is None:
                left_at = minute
        if not fresh or (left_at is not None and minute >= left_at + rule.delay_s / 60):
            inside, left_at = False, None
        out.append(inside)
    return out


def runs(flags):
    """[start, end) of every run of True; the end is None where it reaches the end."""
    out, begun = [], None
    for minute, flag in enumerate([*flags, False]):
        if flag and begun is None:
            begun = minute
        elif not flag and begun is not None:
            out.append((begun, minute if minute < len(flags) else None))
            begun = None
    return out


def waits_for(past, required):
    """How long a candidate waits: until half of the longer ones of the last 20 lasted `required` longer."""
    recent = sorted(past[-20:])
    if len(recent) < 5:
        return 0
    for elapsed in [0, *recent]:
        position = recent.index(elapsed) + 1 if elapsed else 0
        while elapsed and position < len(recent) and recent[position] == elapsed:
            position += 1
        longer = recent[position:]
        if sum(d >= elapsed + required for d in longer) * 2 >= len(longer):
            return elapsed
    raise AssertionError


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 12), max_size=40), min_size=1, max_size=3),
    st.lists(st.integers(1, 12), max_size=25),
    st.integers(1, 15),
)
def test_waits_are_those_of_the_definition(regions, known, required):
    offsets = np.cumsum([0, *map(len, regions)])
    durations = np.array([d for region in regions for d in region], dtype=np.int64)
    waits, after = history_waits(durations, offsets, [known, *([] for _ in regions[1:])], required)
    for r, region in enumerate(regions):
        past = list(known) if r == 0 else []
        for k, duration in enumerate(region):
            assert waits[offsets[r] + k] == waits_for(past, required)
            past.append(duration)
        assert after[r] == past[-20:]


def expected(rule, traces, region):
    flags = [curtailed_minutes(signal, traces[region, signal.kind]) for signal in rule.signals]
    decide = all if rule.needs_all else any
    out, past = [], []
    for begun, ended in runs([decide(now) for now in zip(*flags, strict=True)]):
        opens = begun + (waits_for(past, rule.required_s / 60) if rule.required_s else 0)
        if opens < (LENGTH if ended is None else ended):
            out.append((opens, ended))
        if ended is not None:
            past.append(ended - begun)
    return out


def spans(table, site):
    return [
        ((start - START) / MINUTE, None if end is None else (end - START) / MINUTE)
        for start, end in table.filter(pl.col("site") == site).select("start", "end").rows()
    ]


@settings(max_examples=70, deadline=None)
@given(cases())
def test_windows_are_those_of_the_definition(case):
    rule, traces = case
    table, _ = derive(rule, traces)
    for site in SITES:
        assert spans(table, site.name) == expected(rule, traces, site.region)


ONE_STAMP = (
    RuleSettings(any_of=[{"kind": "marginal_intensity"}, {"kind": "price"}]),
    {
        ("R1", "marginal_intensity"): [],
        ("R1", "price"): [(0, -20.0, False), (5, -20.0, False)],
        ("R2", "marginal_intensity"): [],
        ("R2", "price"): [(0, -20.0, False)],
    },
)
"""A region with one stamp beside one with two: the second's cadence is not the first's to know."""


@settings(max_examples=50, deadline=None)
@example(ONE_STAMP, [1])
@given(cases(), st.lists(st.integers(1, LENGTH - 1), max_size=6, unique=True))
def test_any_split_into_days_gives_the_windows_and_the_state_of_the_whole(case, cuts):
    rule, traces = case
    content = frame(traces)
    whole, whole_state = derive(rule, content)
    days, state, begin = [], None, 0
    for cut in [*sorted(cuts), LENGTH]:
        day, state = derive(rule, content, start=begin, end=cut, state=state)
        assert str(FOREVER) not in state.model_dump_json(), "what has not ended is null"
        stored = RuleState.read(state.model_dump_json(), "a state")
        assert stored == state
        state = stored
        days.append(day)
        begin = cut
    assert merge_days(days).equals(whole)
    assert state == whole_state


@settings(max_examples=50, deadline=None)
@given(cases(), st.integers(1, LENGTH - 1))
def test_windows_of_a_cut_trace_are_those_of_the_whole_up_to_the_cut(case, cut):
    rule, traces = case
    content = frame(traces)
    when = START + cut * MINUTE
    early, _ = derive(rule, content.filter(pl.col("time") < when), end=cut)
    later, _ = derive(rule, content)
    seen = later.filter(pl.col("start") < when)
    ended = pl.col("end") < when
    seen = seen.with_columns(
        end=pl.when(ended).then("end"),
        closed_by=pl.when(ended).then("closed_by"),
    )
    columns = ["site", "region", "start", "end", "opened_by", "closed_by", "policy"]
    assert early.select(columns).equals(seen.select(columns))
    assert early.filter(ended).equals(later.filter(ended))


@settings(max_examples=40, deadline=None)
@given(cases())
def test_windows_of_a_site_never_overlap_nor_touch(case):
    rule, traces = case
    table, _ = derive(rule, traces)
    for site in SITES:
        known = spans(table, site.name)
        for (_, end), (start, _) in pairwise(known):
            assert end is not None and end < start


@settings(max_examples=40, deadline=None)
@given(cases(min_duration=False), st.integers(1, 40))
def test_a_value_beyond_the_maximum_signal_age_never_lengthens_a_window(case, age):
    """Whatever the rule, no minute of a window is without a value of some signal young enough to speak for it."""
    rule, traces = case
    limited = [signal.model_copy(update={"max_signal_age_s": age * 60}) for signal in rule.signals]
    rule = RuleSettings(**{"all_of" if rule.needs_all else "any_of": limited})
    table, _ = derive(rule, traces)
    for site in SITES:
        for start, end in spans(table, site.name):
            for minute in range(int(start), LENGTH if end is None else int(end)):
                young = [
                    any(m <= minute < m + age for m, value, _ in traces[site.region, signal.kind] if value is not None)
                    for signal in limited
                ]
                assert all(young) if rule.needs_all else any(young)


@settings(max_examples=20, deadline=None)
@given(cases(), st.randoms())
def test_the_order_of_rows_does_not_matter(case, random):
    rule, traces = case
    content = frame(traces)
    order = list(range(content.height))
    random.shuffle(order)
    assert derive(rule, content[order])[0].equals(derive(rule, content)[0])
