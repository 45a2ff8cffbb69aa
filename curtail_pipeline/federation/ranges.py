"""Ranges of a site's token sequences, `[epoch, first, end]` or `[epoch, first, end, owner]` (see `corpus.ranges`).

A round deals with leases and what was consumed of them; which shard a range lies in does not matter here.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from curtail_pipeline.errors import LedgerError

Range = Sequence[Any]
Ranges = list[list[Any]]


def compact(ranges: Iterable[Range]) -> Ranges:
    """The same sequences in the same order, neighbours joined and empty ranges dropped."""
    out: Ranges = []
    for epoch, first, end, *owner in ranges:
        if end < first:
            raise LedgerError(f"range {[epoch, first, end, *owner]} ends before it begins")
        if end == first:
            continue
        if out and out[-1][0] == epoch and out[-1][2] == first and out[-1][3:] == owner:
            out[-1][2] = end
        else:
            out.append([epoch, first, end, *owner])
    return out


def length(ranges: Iterable[Range]) -> int:
    """Sequences in the ranges."""
    return sum(part[2] - part[1] for part in ranges)


def after_prefix(lease: Iterable[Range], consumed: Iterable[Range]) -> Ranges:
    """What remains of a lease once its beginning was consumed.

    Raises:
        LedgerError: `consumed` is not the beginning of the lease.
    """
    rest = compact(lease)
    taken = compact(consumed)
    for epoch, first, end, *owner in taken:
        if not rest or [rest[0][0], *rest[0][3:]] != [epoch, *owner] or rest[0][1] != first or rest[0][2] < end:
            raise LedgerError(f"consumed ranges {taken} are not the beginning of the lease {compact(lease)}")
        if rest[0][2] == end:
            rest.pop(0)
        else:
            rest[0][1] = end
    return rest
