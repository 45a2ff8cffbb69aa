"""What a segment costs beside its training, the power of the pause before it; and how long its rounds are."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from checkpoint_cases import fields

from curtail_pipeline.emissions.grams import PowerInterval
from curtail_pipeline.errors import StoreError
from curtail_pipeline.federation.orders import Segment
from curtail_pipeline.scheduling.reconcile import SegmentRequest
from curtail_pipeline.scheduling.timing import Finished, Pause, SegmentPlan, advance
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.stages.derive_windows import derive_day, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.tick import remember, remembered, tick
from curtail_pipeline.stages.train import _open_rounds, _pause_power, _prospect, _virtual_time, _whole_parent
from curtail_pipeline.storage.clock import HeadlessClock
from curtail_pipeline.storage.manifest import InnerStates, Manifest, SiteResult
from curtail_pipeline.storage.store import StoredObject, StoreUnavailable

DAYS = (datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 2, tzinfo=UTC))


def signal(minute: int) -> float:
    """Low in the first six hours of a day, but for 20 minutes: too short to stop a site that takes long to start."""
    return 20.0 if minute < 120 or 140 <= minute < 360 else 400.0


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return opened_project(tmp_path)


def opened_project(tmp_path: Path, round_s: float | str = 600) -> Project:
    """A site that starts slowly and a policy that plans, on a day like the one before."""
    rows = ["time,A"] + [
        f"{(day + timedelta(minutes=m)).isoformat()},{signal(m)}" for day in DAYS for m in range(0, 1440, 5)
    ]
    trace = tmp_path / "trace.csv"
    trace.write_text("\n".join(rows) + "\n")
    experiment = parse_experiment(
        {
            "name": "held",
            "traces": {"provider": "file", "path": str(trace)},
            "clock": {"start": DAYS[1].isoformat()},
            "sites": [{"name": "A", "region": "A", "training_kw": 2.0, "idle_kw": 0.2, "steps_per_s": 0.1}],
            "overheads": {"provisioning_s": 2400, "connect_s": 60, "outer_step_s": 4},
            "policy": {"name": "forecast"},
            "rounds": {"round_s": round_s, "max_rounds": 100},
            "job": {"steps": 1800, "deadline": (DAYS[1] + timedelta(hours=7)).isoformat()},
        },
        "held",
    )
    opened = Project.open(experiment, "headless", tmp_path / "home")
    for day in opened.days:
        save_ingested(opened, ingest_day(opened, "A", day))
        save_derived(opened, derive_day(opened, day))
    return opened


@pytest.mark.parametrize(("realised", "minutes"), [((0, 3), 10), ((0, 1, 3), 20), ((0, 1, 2), 30), ((0, 1, 2, 3), 30)])
def test_sending_what_is_left_takes_no_virtual_time(realised: tuple[int, ...], minutes: int) -> None:
    """Of three planned rounds of ten minutes the first ones were had, and one without steps behind them."""
    start = DAYS[0]
    ends = [start + timedelta(minutes=10 * (number + 1)) for number in range(3)]
    rounds = [SimpleNamespace(end=end) for end in ends]
    whole = PowerInterval("A", "training", start, ends[-1], 2.0)
    scheduled = SimpleNamespace(start=start, end=ends[-1], rounds=rounds, intervals=[whole])
    segment = SimpleNamespace(rounds=[SimpleNamespace(index=index) for index in realised])
    begin, end, (power,) = _virtual_time(cast(SegmentPlan, scheduled), cast(Segment, segment))
    assert (begin, end, power.end) == (start, start + timedelta(minutes=minutes), end)


def commit(project: Project, tmp_path: Path, key: str, steps: int, **more: object) -> Manifest:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(key.encode())
    last = project.checkpoints.last()
    begin = project.parent.steps.end if last else 0
    length = project.experiment.training.sequence_length
    state = InnerStates(begin="fresh", end="sha256:" + "a" * 64)
    done = SiteResult(
        steps=steps, tokens=length * steps, consumed=[(1, begin, begin + steps)] if steps else [], inner_state=state
    )
    content = fields(last, begin) | more
    content |= {
        "sites": {"A": done} if last else {},
        "steps": {"begin": begin, "end": begin + steps},
        "tokens": {"segment": length * steps},
    }
    return project.checkpoints.commit(key, {weights.name: weights}, content, 10**6)


def test_a_site_held_idle_through_a_pause_is_in_the_next_checkpoint(project: Project, tmp_path: Path) -> None:
    """The power of a pause, as the segment after it counts it, is what the timing model gave for that pause."""
    commit(project, tmp_path, "ckpt-000000", 0, start=project.start, end=project.start)
    view, clock = project.view(project.start), project.clock
    assert isinstance(clock, HeadlessClock)
    pauses: list[PowerInterval] = []
    counted = 0
    while True:
        parent = project.parent
        step = advance(view, project.experiment, clock.now(), project.job(parent, remembered(project)))
        if isinstance(step, Finished):
            break
        if isinstance(step, Pause):
            pauses += step.intervals
            remember(project, step.sites, parent.key)
        else:
            request = tick(project, active=None, setback=None, wall=datetime.now(UTC)).request
            assert request is not None
            assert list(_pause_power(project, _prospect(project, request), request.start)) == pauses
            counted += sum(part.state == "idle" and part.end - part.start >= timedelta(minutes=10) for part in pauses)
            commit(project, tmp_path, request.key, step.steps, start=step.start, end=step.end, attempt=request.attempt)
            remember(project, step.sites, request.key, ended=True)
            pauses = []
        clock.advance_to(step.end)
    assert counted, "the policy held a site through a pause, or this test shows nothing"


def test_a_damaged_parent_goes_aside_and_its_segment_is_trained_again(project: Project, tmp_path: Path) -> None:
    commit(project, tmp_path, "ckpt-000000", 0, start=project.start, end=project.start)
    commit(project, tmp_path, "ckpt-000001", 5, start=project.start, end=project.start)
    commit(project, tmp_path, "ckpt-000002", 5, start=project.start, end=project.start)
    files = sorted(Path(project.checkpoints.where("ckpt-000002")).glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-1] + b"!")
    said = r"corrupt: expected .* set aside in .*; training goes on from ckpt-000001 and makes ckpt-000002 again"
    with pytest.raises(StoreError, match=said):
        _whole_parent(project, "ckpt-000002")
    assert project.checkpoints.last() == "ckpt-000001"
    assert [name[:11] for name in project.store.list("set_aside")] == ["ckpt-000002"]
    commit(project, tmp_path, "ckpt-000002", 4, start=project.start, end=project.start)
    assert project.checkpoints.verify_chain() == ["ckpt-000000", "ckpt-000001", "ckpt-000002"]
    with pytest.raises(StoreError, match="ckpt-000001 is what other checkpoints were made from"):
        project.checkpoints.withdraw("ckpt-000001")


@pytest.mark.parametrize("error", [StoreUnavailable("no answer for 60 s"), PermissionError(13, "Permission denied")])
def test_a_parent_that_cannot_be_read_now_stays_where_it_is(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    commit(project, tmp_path, "ckpt-000000", 0, start=project.start, end=project.start)
    commit(project, tmp_path, "ckpt-000001", 5, start=project.start, end=project.start)

    def fails(_: str) -> StoredObject:
        raise error

    with monkeypatch.context() as outage, pytest.raises(StoreError, match=r"no answer|cannot be read"):
        outage.setattr(project.store, "stat", fails)
        _whole_parent(project, "ckpt-000001")
    assert project.checkpoints.last() == "ckpt-000001" and project.store.list("set_aside") == []


def test_a_real_run_is_ordered_rounds_of_the_length_that_auto_chose(tmp_path: Path) -> None:
    project = opened_project(tmp_path, "auto")
    request = SegmentRequest(
        key="ckpt-000001", attempt=1, parent="ckpt-000000", members=("A",), mode="local", generation=1,
        start=project.start, reason="", previous={}, before_pause={},
    )  # fmt: skip
    ordered = _open_rounds(project, project.view(project.start), request, {})
    assert ordered.round_s == 240, "the square root of twice 4 s of merging x 2 h of window"
