"""Properties of the learning-rate schedule."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.training.schedule import global_step, multiplier, muon_momentum

jobs = st.fixed_dictionaries(
    {
        "total_steps": st.integers(1, 5000),
        "warmup_steps": st.integers(0, 6000),
        "decay_fraction": st.floats(0, 1, allow_nan=False),
    }
)


@given(jobs, st.integers(0, 20_000))
def test_between_zero_and_one_and_zero_only_beyond_the_job(job, step):
    value = multiplier(step, **job)
    assert 0 <= value <= 1
    assert (value > 0) == (step < job["total_steps"])


@given(jobs)
def test_rises_then_falls(job):
    values = [multiplier(step, **job) for step in range(0, job["total_steps"], max(1, job["total_steps"] // 200))]
    top = values.index(max(values))
    assert values[: top + 1] == sorted(values[: top + 1])
    assert values[top:] == sorted(values[top:], reverse=True)


def test_shape_of_a_job():
    job = {"total_steps": 100, "warmup_steps": 10, "decay_fraction": 0.2}
    assert [multiplier(s, **job) for s in (0, 4, 9, 10, 50, 80, 90, 99, 100, 200)] == pytest.approx(
        [0.1, 0.5, 1, 1, 1, 1, 0.5, 0.05, 0, 0]
    )


def test_no_warm_up_and_no_decay():
    job = {"total_steps": 3, "warmup_steps": 0, "decay_fraction": 0.0}
    assert [multiplier(s, **job) for s in range(4)] == [1, 1, 1, 0]


@pytest.mark.parametrize(("step", "total"), [(-1, 10), (0, 0)])
def test_outside_a_job(step, total):
    with pytest.raises(TrainingError, match=f"step {step} of {total}"):
        multiplier(step, total_steps=total, warmup_steps=0, decay_fraction=0.2)


@given(st.integers(0, 1000), st.integers(0, 50), st.integers(1, 5))
def test_members_walk_the_schedule_at_the_pace_of_the_job(first, steps, members):
    # After `steps` steps of every member the job stands where the next round begins.
    assert global_step(first, steps, members) == first + steps * members


def test_muons_momentum_rises_where_that_is_set():
    assert muon_momentum(0, 0) == muon_momentum(300, 300) == muon_momentum(9000, 300) == 0.95
    assert muon_momentum(0, 300) == 0.85
    assert muon_momentum(150, 300) == pytest.approx(0.9)
