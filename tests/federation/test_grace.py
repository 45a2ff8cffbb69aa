"""How long slow sites are waited for: never before a quorum has answered, and no longer than the others' times say."""

import statistics

from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.federation.grace import Quorum

TIMES = st.lists(st.floats(0, 1e5), max_size=8)


@given(times=TIMES, members=st.integers(1, 10), grace=st.floats(0.01, 10), asked=st.integers(1, 10))
def test_the_end_of_the_grace(times: list[float], members: int, grace: float, asked: int) -> None:
    quorum = Quorum(members=members, grace=grace)
    until, least = quorum.waits_until(asked, times), min(members, asked)
    assert Quorum(members=members).waits_until(asked, times) is None, "all are waited for"
    if len(times) < least:
        assert until is None
        return
    first = sorted(times)[:least]
    assert until is not None and first[-1] <= until <= (1 + grace) * first[-1] + 1e-6
    assert until - first[-1] <= grace * statistics.median(first) + 1e-6
    assert quorum.waits_until(asked, times[::-1]) == until, "the order of answers does not matter"
    assert quorum.waits_until(asked, [*times, first[-1] + 1]) == until, "nor who comes later"
    longer = Quorum(members=members, grace=2 * grace).waits_until(asked, times)
    assert longer is not None and longer >= until


def test_an_example() -> None:
    quorum = Quorum(members=3, grace=0.5)
    assert quorum.waits_until(5, [10.0, 30.0]) is None
    assert quorum.waits_until(5, [10.0, 30.0, 20.0]) == quorum.waits_until(5, [10.0, 30.0, 20.0, 39.0]) == 40.0
    assert quorum.waits_until(2, [10.0, 20.0]) == 27.5, "all two of two are a quorum of three"
