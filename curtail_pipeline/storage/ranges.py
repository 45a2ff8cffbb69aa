"""Token ranges: `(epoch, first, end)` in sequence indices of a site's shard set, `end` excluded.

The manifest's ledger is a compacted list of them per site; adding a range that is already in the list is an error,
which is what makes "every range counted once" checkable from the stored checkpoints alone.
"""

from collections.abc import Iterable, Sequence

from curtail_pipeline.errors import LedgerError

Range = tuple[int, int, int]


def add_ranges(counted: Iterable[Sequence[int]], new: Iterable[Sequence[int]], owner: str) -> list[Range]:
    """The union of two sets of ranges, sorted and with neighbours joined.

    Raises:
        LedgerError: a range is empty or negative, or a sequence would be counted twice; names `owner` and the range.
    """
    ranges = sorted((int(epoch), int(first), int(end)) for epoch, first, end in [*counted, *new])
    union: list[Range] = []
    for epoch, first, end in ranges:
        if epoch < 0 or first < 0 or end <= first:
            raise LedgerError(
                f"{owner}: [{epoch}, {first}, {end}] is not a range; write [epoch, first, end] with end > first"
            )
        if union and union[-1][0] == epoch and first < union[-1][2]:
            raise LedgerError(
                f"{owner}: sequences {first} to {min(end, union[-1][2])} of epoch {epoch} would be counted twice; "
                "a range belongs to one segment, so train on the rest of the lease instead"
            )
        if union and union[-1][0] == epoch and first == union[-1][2]:
            union[-1] = (epoch, union[-1][1], end)
        else:
            union.append((epoch, first, end))
    return union


def count_sequences(ranges: Iterable[Sequence[int]]) -> int:
    return sum(end - first for _, first, end in ranges)
