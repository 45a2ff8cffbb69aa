"""Days of windows in a store: they follow from each other, and a revised day brings later days in line."""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from micro import EXPERIMENT

from curtail_pipeline.cli.windows_of_file import windows_of_file
from curtail_pipeline.scheduling.curtailed import windows_of_record
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.stages.derive_windows import derive_day, derive_days, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.tables import read_table, trace_key, windows_key, write_table
from curtail_pipeline.times import iso
from curtail_pipeline.windows.rules import derive_windows

SYNTHETIC = {"provider": "synthetic", "seed": 307, "start": "2026-03-21T00:00:00Z", "days": 4}


@pytest.fixture
def project(tmp_path: Path) -> Project:
    sites = [{**EXPERIMENT["sites"][0], "name": name, "region": name} for name in ("CAISO_NORTH", "SPP_TX", "NEM_SA")]
    experiment = parse_experiment({**EXPERIMENT, "traces": SYNTHETIC, "sites": sites}, "test")
    project = Project.open(experiment, "headless", tmp_path)
    for day in project.days:
        for region in experiment.regions:
            found = ingest_day(project, region, day)
            assert not found.blocked
            save_ingested(project, found)
    return project


def derive_all(project: Project) -> None:
    for day in project.days:
        save_derived(project, derive_day(project, day))


def whole(project: Project) -> pl.DataFrame:
    start, end = project.span or (None, None)
    assert start and end
    experiment = project.experiment
    table, _ = derive_windows(project.traces(project.days), experiment.sites, experiment.policy, start=start, end=end)
    return table.sort("site", "start")


def test_days_together_are_the_whole_range(project: Project) -> None:
    derive_all(project)
    columns = ["site", "region", "start", "end", "opened_by", "closed_by"]
    assert project.windows(project.days).sort("site", "start").select(columns).equals(whole(project).select(columns))


def test_a_revised_day_reaches_exactly_as_far_as_its_state_differs(project: Project) -> None:
    """The first day's last hours become curtailed in one region: the window now runs into the second day."""
    derive_all(project)
    day = project.days[0]
    key = trace_key(day.isoformat(), "SPP_TX")
    trace = read_table(project.store, key)
    late = pl.col("time") >= pl.col("time").max() - timedelta(hours=2)
    write_table(project.store, key, trace.with_columns(value=pl.when(late).then(1.0).otherwise(pl.col("value"))))
    derived = []
    for found in derive_days(project, [day]):
        save_derived(project, found)
        derived.append(found.day)
    assert derived[0] == day and 2 <= len(derived) <= len(project.days)
    columns = ["site", "start", "end"]
    assert project.windows(project.days).sort("site", "start").select(columns).equals(whole(project).select(columns))


def test_an_unchanged_day_reaches_no_further(project: Project) -> None:
    derive_all(project)
    assert [found.day for found in derive_days(project, project.days[:1])] == [project.days[0]]
    assert project.store.exists(windows_key(project.days[0].isoformat()))


def test_ingesting_again_says_what_was_revised(project: Project) -> None:
    day = project.days[0]
    key = trace_key(day.isoformat(), "NEM_SA")
    trace = read_table(project.store, key)
    first = pl.int_range(pl.len()) < 3
    write_table(
        project.store, key, trace.with_columns(value=pl.when(first).then(pl.col("value") + 5).otherwise("value"))
    )
    found = ingest_day(project, "NEM_SA", day)
    assert found.metadata["revised"] == 3
    assert found.metadata["largest_change"] == pytest.approx(5.0)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(4)), bad=st.sets(st.tuples(st.integers(0, 3), st.sampled_from(["SPP_TX", "NEM_SA"])))
)
def test_days_in_any_order_with_any_holes_end_as_the_whole_range(
    project: Project, order: list[int], bad: set[tuple[int, str]]
) -> None:
    """Every day is derived with some regions' traces missing, then the missing ones are repaired, last day first."""
    store, days = project.store, project.days
    store.delete("windows")
    kept = {}
    for n, region in bad:
        key = trace_key(days[n].isoformat(), region)
        kept[key] = read_table(store, key)
        store.delete(key)
    for n in order:
        for derived in derive_days(project, [days[n]]):
            assert {region for at, region in bad if days[at] == derived.day} == set(derived.missing)
            save_derived(project, derived)
    for n, region in sorted(bad, reverse=True):
        key = trace_key(days[n].isoformat(), region)
        write_table(store, key, kept[key])
        for derived in derive_days(project, [days[n]]):
            save_derived(project, derived)
    columns = ["site", "region", "start", "end", "opened_by", "closed_by"]
    assert project.windows(days).sort("site", "start").select(columns).equals(whole(project).select(columns))


def test_the_first_value_of_an_hourly_record_holds_for_its_hour_in_command_simulation_and_pipeline(
    tmp_path: Path,
) -> None:
    path, rows = tmp_path / "hourly.csv", ["time,A"]
    rows += [
        f"2026-05-{1 + h // 24:02d}T{h % 24:02d}:00:00Z,{40 + h % 7 if h < 3 else 500 + h % 11}" for h in range(48)
    ]
    path.write_text("\n".join(rows) + "\n")
    sites = [{**EXPERIMENT["sites"][0], "name": "A", "region": "A"}]
    policy = {"name": "threshold"}
    content = {**EXPERIMENT, "traces": {"provider": "file", "path": str(path)}, "sites": sites, "policy": policy}
    project = Project.open(parse_experiment(content, "test"), "headless", tmp_path / "home")
    for day in project.days:
        save_ingested(project, ingest_day(project, "A", day))
    derive_all(project)
    open_for = [("2026-05-01T00:00:00Z", "2026-05-01T03:00:00Z")]
    told = windows_of_file(path, project.experiment).windows
    assert [(window.start, window.end) for window in told] == open_for
    simulated = windows_of_record(project.experiment, project.traces(project.days), project.experiment.policy)
    for table in (simulated, project.windows(project.days)):
        assert [(iso(row["start"]), iso(row["end"])) for row in table.iter_rows(named=True)] == open_for
