"""The last steps of a job are divided so that all sites end together."""

from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.federation.budgets import step_budgets


def test_by_speed() -> None:
    assert step_budgets(100, {"A": 300.0, "B": 100.0}) == {"A": 75, "B": 25}
    assert step_budgets(10, {"A": 0.0, "B": 0.0, "C": 0.0}) == {"A": 4, "B": 3, "C": 3}
    assert step_budgets(12, {"A": 300.0, "B": 100.0, "new": 0.0}) == {"A": 6, "B": 2, "new": 4}


@given(
    left=st.integers(0, 10**6),
    speeds=st.dictionaries(st.text(max_size=3), st.floats(0, 1e9, allow_subnormal=False), min_size=1, max_size=6),
)
def test_all_are_given_out_and_nobody_is_a_step_off(left: int, speeds: dict[str, float]) -> None:
    budgets = step_budgets(left, speeds)
    known = [speed for speed in speeds.values() if speed]
    usual = sum(known) / len(known) if known else 1.0
    total = sum(speed or usual for speed in speeds.values())
    assert sum(budgets.values()) == left
    assert all(abs(budgets[site] - left * (speed or usual) / total) < 1.001 for site, speed in speeds.items())
