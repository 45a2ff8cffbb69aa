"""What is left of a lease."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.errors import LedgerError
from curtail_pipeline.tokens.ranges import Range, after_prefix, compact, total


def ranges() -> st.SearchStrategy[list[Range]]:
    return st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 30), st.integers(0, 12)).map(lambda t: (t[0], t[1], t[1] + t[2])),
        max_size=5,
    )


@given(ranges(), st.data())
def test_ranges_after_a_prefix(lease: list[Range], data: st.DataObject) -> None:
    flat = [(epoch, i) for epoch, first, end in lease for i in range(first, end)]
    cut = data.draw(st.integers(0, len(flat)))
    consumed = compact((epoch, i, i + 1) for epoch, i in flat[:cut])
    rest = after_prefix(lease, consumed)
    assert [(epoch, i) for epoch, first, end in rest for i in range(first, end)] == flat[cut:]
    assert total(consumed) + total(rest) == total(lease)


def test_ranges_out_of_the_lease_are_refused() -> None:
    for consumed in ([(0, 1, 3)], [(0, 0, 11)], [(1, 0, 2)], [(0, 0, 4), (0, 5, 6)]):
        with pytest.raises(LedgerError, match="not the beginning of the lease"):
            after_prefix([(0, 0, 10)], consumed)
    with pytest.raises(LedgerError, match="ends before it begins"):
        compact([(0, 4, 2)])
