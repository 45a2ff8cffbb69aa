"""Deadlines that are planned for before the real one."""

from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.scheduling.earlier_deadlines import FINE_RUNGS, FINE_SLOTS, RUNGS, earlier_deadlines


@given(st.integers(1, 10**12), st.integers(0, 10**13), st.integers(0, 10**12), st.sampled_from([FINE_SLOTS, 10**4]))
def test_a_later_deadline_goes_on_where_an_earlier_one_was(now: int, span: int, more: int, slots: int) -> None:
    cadence = 300_000_000
    found = earlier_deadlines(now, now + span, cadence, slots)
    later = earlier_deadlines(now, now + span + more, cadence, slots)
    assert found == sorted(set(found)) and all(now < by < now + span for by in found)
    assert len(found) <= (FINE_RUNGS if slots == FINE_SLOTS else RUNGS)
    assert [by for by in later if by < now + span] == [by for by in found if by >= min(later, default=0)]
