"""What sites draw by the wall clock, from what a store holds: orders, attempts that failed, the time since the last."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from checkpoint_cases import fields

from curtail_pipeline.emissions.basis import label_of
from curtail_pipeline.emissions.grams import intervals_table, ledger, totals
from curtail_pipeline.emissions.meter import Drawn
from curtail_pipeline.federation.orders import (
    JournalLine,
    OpenRounds,
    OuterSettings,
    ParentCheckpoint,
    Plan,
    Result,
    RoundDone,
)
from curtail_pipeline.federation.plan import plan_key, scratch_of
from curtail_pipeline.federation.server_life import ServerLife, life_key
from curtail_pipeline.scheduling.provisioned_time import ORDERS
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.stages.account import checkpoint_ledger, stored_ledgers
from curtail_pipeline.stages.derive_windows import derive_day, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_report import summarise, write_report
from curtail_pipeline.stages.signal_versions import SignalVersions
from curtail_pipeline.stages.tick import tick
from curtail_pipeline.stages.wall_power import other_attempts, wall_time
from curtail_pipeline.storage.clock import ReplayClock
from curtail_pipeline.storage.manifest import Interval
from curtail_pipeline.storage.tables import BETWEEN, BETWEEN_KEY, ledger_key, read_table, write_table
from curtail_pipeline.times import utc_now

DAY = datetime(2026, 5, 1, tzinfo=UTC)
STILL = 1e-12
"""A speed at which a replay stands."""


def at(minute: float) -> datetime:
    return DAY + timedelta(minutes=minute)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A site that is curtailed from 10 to 40 minutes, needs 5 to start and 2 to stop, and an initialised model."""
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "time,A\n" + "".join(f"{at(m).isoformat()},{20 if 10 <= m < 40 else 400}\n" for m in range(0, 120, 5))
    )
    experiment = parse_experiment(
        {
            "name": "wall",
            "traces": {"provider": "file", "path": str(trace)},
            "sites": [{"name": "A", "region": "A", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.1}],
            "overheads": {"provisioning_s": 240, "connect_s": 60, "stop_drain_s": 120},
            "policy": {"name": "threshold"},
            "job": {"steps": 1000},
        },
        "wall",
    )
    opened = Project.open(experiment, "replay", tmp_path / "home")
    save_ingested(opened, ingest_day(opened, "A", DAY.date()))
    save_derived(opened, derive_day(opened, DAY.date()))
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    content = fields() | {"start": DAY, "end": DAY}
    opened.checkpoints.commit("ckpt-000000", {weights.name: weights}, content, 0)
    write_table(opened.store, ledger_key("ckpt-000000"), checkpoint_ledger(opened, "ckpt-000000"))
    return opened


def go_to(project: Project, minute: float) -> None:
    clock = project.clock
    assert isinstance(clock, ReplayClock)
    clock.anchor(at(minute), STILL)


def test_what_was_drawn_since_the_last_checkpoint_is_in_the_totals(project: Project) -> None:
    for minute in range(60):
        go_to(project, minute)
        tick(project, active=None, setback=None, wall=DAY)
    assert len(project.store.list(ORDERS)) == 4, "off, starting, ready, off: nothing else changed"
    write_report(project, SignalVersions(project))
    table = read_table(project.store, BETWEEN_KEY)
    rows = table.select("checkpoint", "state", "start", "end").rows()
    assert rows == [(BETWEEN, "start_up", at(10), at(14)), (BETWEEN, "idle", at(14), at(42))]
    assert (table["clock"].unique().item(), table["kwh"].sum()) == ("virtual", pytest.approx(0.5 * 32 / 60))
    found = summarise(project)
    assert found.kwh == pytest.approx(0.5 * 32 / 60)
    assert found.co2_g == pytest.approx(0.5 * (30 * 20 + 2 * 400) / 60)
    stored = stored_ledgers(project)
    assert stored is not None and totals(stored).kwh == 0, "no checkpoint's"
    page = project.store.read_bytes("report/index.html").decode()
    assert "between checkpoints" in page


def planned(project: Project, attempt: int, written: datetime) -> str:
    """The scratch folder of an attempt at the next checkpoint."""
    folder = scratch_of("ckpt-000001", attempt)
    plan = Plan(
        key="ckpt-000001", attempt=attempt, members=("A",), mode="local", first_step=0, total_steps=1000,
        parent=ParentCheckpoint(key="ckpt-000000", weights="w", sha256="a" * 64, config="c"),
        open=OpenRounds(round_s=60, max_rounds=9, lease={}, generation=1), norm_bound=5.0,
        outer=OuterSettings(lr=0.7, momentum=0.9), written=written,
    )  # fmt: skip
    project.store.write_record(plan_key(folder), plan)
    return folder


def test_an_attempt_that_broke_off_is_lost_training_until_its_last_sign_of_life(project: Project) -> None:
    go_to(project, 0)
    clock = project.clock
    assert isinstance(clock, ReplayClock)
    wall = datetime(2026, 6, 1, tzinfo=UTC)
    clock.anchor(at(15), 1.0, wall)  # the wall's minutes are those of the trace
    folder = planned(project, 1, wall)
    project.store.write_record(
        life_key(folder), ServerLife(pid=1, count=3, doing="collecting", at=wall + timedelta(minutes=4))
    )
    second = planned(project, 2, wall + timedelta(minutes=6))
    parts = {(part.state, part.start, part.end) for part in other_attempts(project, "ckpt-000001", but=second)}
    assert parts == {("idle", at(15), at(19)), ("failed", at(15), at(19))}


def line(start: datetime, minutes: float, drawn: Drawn | None = None, **outcome: dict[str, Any]) -> JournalLine:
    """A round to which A was ordered."""
    done = {"steps": {}, "lost": {}, **{name: outcome[name] for name in outcome if name != "results"}}
    results = {site: Result.model_construct(seconds=s, drawn=drawn) for site, s in outcome.get("results", {}).items()}
    return JournalLine.model_construct(
        done=RoundDone.model_construct(start=start, end=start + timedelta(minutes=minutes), **done),
        orders={"A": None},
        results=results,
    )


@pytest.mark.parametrize(
    ("outcome", "states"),
    [
        ({"results": {"A": 120.0}, "steps": {"A": 3}}, {"training": 2, "transfer": 1, "idle": 7}),
        ({"results": {"A": 120.0}, "refused": {"A": "not finite"}}, {"failed": 2, "transfer": 1, "idle": 7}),
        ({"lost": {"A": "no heartbeat"}}, {"failed": 3, "idle": 7}),
    ],
)
def test_a_round_is_training_if_it_counts_and_lost_if_not(
    project: Project, outcome: dict[str, dict[str, Any]], states: dict[str, int]
) -> None:
    start = utc_now() - timedelta(minutes=10)
    begin, end, found = wall_time(project, ["A"], [line(start, 3, **outcome)], began=utc_now())
    assert (begin, found[0].start, found[-1].end) == (start, start, end)
    spent = {part.state: round((part.end - part.start) / timedelta(minutes=1)) for part in found}
    assert spent == states, "from the first round, whoever followed it"


@pytest.mark.parametrize(
    ("kwh", "speed", "kw"),
    [(0.06, 1.0, 1.2 * 1.8), (0.06, 60.0, None), (9.0, 1.0, None)],
    ids=["measured", "replayed faster than it was drawn", "more than any device takes"],
)
def test_a_round_is_booked_with_what_its_trainer_measured(
    project: Project, kwh: float, speed: float, kw: float | None
) -> None:
    site = project.experiment.sites[0].model_copy(update={"pue": 1.2})
    project.experiment = project.experiment.model_copy(update={"sites": [site]})
    start = utc_now() - timedelta(minutes=10)
    drawn = Drawn(kwh=kwh, source="GPU counters")
    rounds = [line(start, 3, drawn, results={"A": 120.0}, steps={"A": 3})]
    _, _, found = wall_time(project, ["A"], rounds, start, lambda wall: start + (wall - start) * speed)
    training, *rest = found
    assert (training.state, training.measured) == ("training", kw is not None)
    assert training.kw == pytest.approx(1.2 * 2.0 if kw is None else kw)
    assert not any(part.measured for part in rest)
    table = ledger(intervals_table(found), {}, [site], clock="wall")
    assert table["power"].to_list() == ["modelled" if kw is None else "measured"] + ["modelled"] * len(rest)
    label = label_of(table)
    assert label is not None and label.endswith("modelled power") and ("% measured" in label) == (kw is not None)
    stored = Interval(**vars(training))
    assert ("measured" in stored.model_dump_json()) == (kw is not None), "an old manifest keeps its bytes"


def test_ledger_of_a_day_without_orders_is_empty(project: Project) -> None:
    go_to(project, 90)
    write_report(project, SignalVersions(project))
    assert read_table(project.store, BETWEEN_KEY).filter(pl.col("kwh") > 0).is_empty()
