"""Forecasts kept beside the traces: what reads them, and that a decision made again sees the same ones."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from fake_watttime import NOW, SECRETS, Backend, Clock
from micro import CURTAILED, EXPERIMENT, HOURS, START, signal, write_trace
from signals_fake_api import Answer, FakeApi, Request, serve
from simulation_cases import next_event

from curtail_pipeline.scheduling.decide import Decision, decide
from curtail_pipeline.scheduling.view import Job, SiteDecision
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.settings.trace_settings import WattTimeTraces
from curtail_pipeline.signals.http import RateLimiter
from curtail_pipeline.signals.watttime import WattTimeProvider
from curtail_pipeline.stages.derive_windows import derive_day, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.tables import forecast_key, read_table, trace_key
from curtail_pipeline.times import to_us

STEPS = 6
FORECAST_SITES = EXPERIMENT["sites"][:2]
DEADLINE = START + timedelta(hours=3.5)
PLANNING = {
    **EXPERIMENT,
    "sites": FORECAST_SITES,
    "policy": {"name": "forecast"},
    "job": {"steps": 30, "deadline": DEADLINE.isoformat()},
}


def write_forecasts(path: Path) -> Path:
    """NORTH's signal with the forecasts issued at each row: 900 now and 5 half an hour on, which nothing else says."""
    rows = ["time,NORTH," + ",".join(f"f{step}" for step in range(1, STEPS + 1))]
    for minute in range(0, HOURS * 60, 5):
        stamp = (START + timedelta(minutes=minute)).isoformat()
        said = [900.0] * (STEPS - 1) + [5.0]
        rows.append(",".join([stamp, f"{signal('NORTH', minute)}", *map(str, said)]))
    path.write_text("\n".join(rows) + "\n")
    return path


def recorded(folder: Path, clock: str) -> Project:
    sources = [
        {"provider": "file", "path": str(write_forecasts(folder / "north.csv")), "forecast": {"pattern": "f{step}"}},
        {"provider": "file", "path": str(write_trace(folder / "trace.csv"))},
    ]
    traces = {"provider": "combined", "sources": sources}
    return Project.open(parse_experiment({**PLANNING, "traces": traces}, "test"), clock, folder / "home")  # type: ignore[arg-type]


def prepare(project: Project) -> None:
    for day in project.days:
        for region in project.experiment.regions:
            save_ingested(project, ingest_day(project, region, day))
        save_derived(project, derive_day(project, day))


def test_a_policy_that_plans_reads_the_forecasts_that_were_issued(tmp_path: Path) -> None:
    project = recorded(tmp_path, "headless")
    prepare(project)
    day = START.date().isoformat()
    table = read_table(project.store, forecast_key(day, "NORTH"))
    assert set(table["kind"]) == {"marginal_intensity"}
    assert table["issued_at"].n_unique() == HOURS * 12
    assert not project.store.exists(forecast_key(day, "SOUTH"))
    forecast = project.view(START).forecasts
    assert forecast is not None
    now = to_us(START + timedelta(hours=1))
    ahead = np.arange(1, STEPS + 1) * 300_000_000
    assert forecast.predict("NORTH", now, now + ahead).tolist() == [900.0] * (STEPS - 1) + [5.0]
    assert forecast.predict("SOUTH", now, now + ahead).tolist() == [20.0] * STEPS


def test_a_live_decision_sees_what_the_whole_record_shows_up_to_now(tmp_path: Path) -> None:
    whole = recorded(tmp_path, "headless")
    prepare(whole)
    replayed = recorded(tmp_path, "replay")
    view = whole.view(START)
    previous: dict[str, SiteDecision] = {}
    states: set[str] = set()
    now: datetime | None = START
    while now is not None and now < START + timedelta(minutes=200):
        found = [decide(v, now, job(whole, previous)) for v in (view, replayed.view(now))]
        # In between, where start-ups end, a live decision plans anew and a recorded one carries on.
        if to_us(now) % 300_000_000 == 0:
            assert plain(found[0]) == plain(found[1])
        previous = dict(found[0].sites)
        states |= {site.state for site in previous.values()}
        now = next_event(view, now)
    assert {"train", "off"} <= states


def job(project: Project, previous: dict[str, SiteDecision]) -> Job:
    return Job(0, project.experiment.job.steps, START, DEADLINE, previous)


def plain(decision: Decision) -> list[tuple[str, str, str]]:
    return [(name, site.state, site.reason) for name, site in decision.sites.items()]


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serve(Backend()) as fake:
        yield fake


def live(folder: Path, api: FakeApi) -> Project:
    site = {**FORECAST_SITES[0], "region": "CAISO_NORTH"}
    start = NOW.replace(hour=0, minute=0, second=0)
    job = {"steps": 30, "deadline": (NOW + timedelta(hours=9)).isoformat()}
    traces = {"provider": "watttime", "base_url": api.url}
    changes = {"sites": [site], "traces": traces, "clock": {"start": start.isoformat()}, "job": job}
    project = Project.open(parse_experiment({**PLANNING, **changes}, "test"), "live", folder)
    clock = Clock()
    limiter = RateLimiter(1000, 1.0, sleep=clock.sleep)
    project.provider = WattTimeProvider(
        WattTimeTraces(base_url=api.url), environ=SECRETS, clock=clock, sleep=clock.sleep, limiter=limiter
    )
    return project


def issues(project: Project, day: str) -> list[datetime]:
    return read_table(project.store, forecast_key(day, "CAISO_NORTH"))["issued_at"].unique().sort().to_list()


def test_today_asks_only_for_what_was_issued_since(tmp_path: Path, api: FakeApi) -> None:
    project = live(tmp_path, api)
    day = NOW.date().isoformat()
    save_ingested(project, ingest_day(project, "CAISO_NORTH", day))
    first = issues(project, day)
    assert first[0] == NOW.replace(hour=0, minute=0, second=0) and first[-1] == NOW.replace(minute=0, second=0)
    assert all(b - a == timedelta(minutes=5) for a, b in pairwise(first))
    before = len(api.of("/v3/forecast/historical"))
    save_ingested(project, ingest_day(project, "CAISO_NORTH", day))
    asked = api.of("/v3/forecast/historical")[before:]
    assert all(request.params["start"] > first[-2].strftime("%Y-%m-%dT%H:%M:%SZ") for request in asked)
    assert issues(project, day) == first


def test_earlier_nowcasts_are_kept_while_history_lags(tmp_path: Path) -> None:
    backend = Backend(history_until=NOW - timedelta(minutes=40))
    with serve(backend) as api:
        project = live(tmp_path, api)
        clock = Clock()
        at = NOW.replace(second=0, minute=0)
        provider = WattTimeProvider(
            WattTimeTraces(base_url=api.url), environ=SECRETS, clock=clock, sleep=clock.sleep,
            limiter=RateLimiter(1000, 1.0, sleep=clock.sleep),
        )  # fmt: skip
        project.provider = provider
        day = NOW.date().isoformat()
        for _ in range(3):
            save_ingested(project, ingest_day(project, "CAISO_NORTH", day))
            clock.now += timedelta(minutes=5)
            backend.nowcast_at += timedelta(minutes=5)
        stored = read_table(project.store, trace_key(day, "CAISO_NORTH"))
        estimated = stored.filter("estimated").drop_nulls("value")["time"].to_list()
        assert estimated == [at, at + timedelta(minutes=5), at + timedelta(minutes=10)]
        # What history says later replaces them.
        backend.history_until = clock.now
        save_ingested(project, ingest_day(project, "CAISO_NORTH", day))
        stored = read_table(project.store, trace_key(day, "CAISO_NORTH"))
        assert stored["value"].null_count() == 0 and not stored["estimated"].any()


def test_a_forecast_that_is_refused_costs_no_signal(tmp_path: Path, api: FakeApi) -> None:
    backend = api.respond

    def without_forecasts(request: Request) -> Answer:
        if request.path == "/v3/forecast/historical":
            return Answer("Invalid scope", 403)
        return backend(request)

    api.respond = without_forecasts
    project = live(tmp_path, api)
    found = ingest_day(project, "CAISO_NORTH", NOW.date())
    assert "no new forecasts" in found.metadata["warnings"] and "CAISO_NORTH" in found.metadata["warnings"]
    assert found.table.height > 100
    save_ingested(project, found)
    assert not project.store.exists(forecast_key(NOW.date().isoformat(), "CAISO_NORTH"))


def test_without_a_reader_no_forecast_is_asked_for(tmp_path: Path, api: FakeApi) -> None:
    project = live(tmp_path, api)
    plain_policy = project.experiment.model_copy(
        update={"policy": project.experiment.policy.model_copy(update={"name": "threshold"})}
    )
    project.experiment = plain_policy
    found = ingest_day(project, "CAISO_NORTH", NOW.date())
    assert found.forecasts is None
    assert not api.of("/v3/forecast/historical")


def test_a_stored_forecast_keeps_short_windows_closed(tmp_path: Path) -> None:
    """The rule's minimum duration is judged by the stored forecasts, and by nothing else: NORTH's say 900 at once."""
    rule = {"enter": 100, "exit_delay_s": 0, "min_duration_s": 1800}
    sources = [
        {"provider": "file", "path": str(write_forecasts(tmp_path / "north.csv")), "forecast": {"pattern": "f{step}"}},
    ]
    content = {
        **EXPERIMENT,
        "sites": FORECAST_SITES[:1],
        "policy": {"name": "threshold"},
        "rules": {"NORTH": rule},
        "traces": {"provider": "combined", "sources": sources},
    }
    project = Project.open(parse_experiment(content, "test"), "headless", tmp_path / "home")
    prepare(project)
    assert project.windows(project.days).is_empty()
    key = forecast_key(START.date().isoformat(), "NORTH")
    project.store.delete(key)
    save_derived(project, derive_day(project, project.days[0]))
    assert project.windows(project.days).select(pl.col("start")).rows() == [
        (START + timedelta(minutes=CURTAILED["NORTH"][0][0]),)
    ]
