"""Ranges of a site's token sequences: `[epoch, first, end]`."""

from collections.abc import Iterable, Sequence

from curtail_pipeline.errors import LedgerError

Ranges = list[list[int]]


def compact(ranges: Iterable[Sequence[int]]) -> Ranges:
    """The same sequences in the same order, neighbours joined and empty ranges dropped."""
    out: Ranges = []
    for epoch, first, end in ranges:
        if end < first:
            raise LedgerError(f"range [{epoch}, {first}, {end}] ends before it begins")
        if end == first:
            continue
        if out and out[-1][0] == epoch and out[-1][2] == first:
            out[-1][2] = end
        else:
            out.append([epoch, first, end])
    return out


def length(ranges: Iterable[Sequence[int]]) -> int:
    return sum(end - first for _, first, end in ranges)


def after_prefix(lease: Iterable[Sequence[int]], consumed: Iterable[Sequence[int]]) -> Ranges:
    """What remains of a lease once its beginning was consumed.

    Raises:
        LedgerError: `consumed` is not the beginning of the lease.
    """
    lease, consumed = compact(lease), compact(consumed)
    rest = [list(part) for part in lease]
    for epoch, first, end in consumed:
        while first < end:
            if not rest or rest[0][0] != epoch or rest[0][1] != first:
                raise LedgerError(f"consumed ranges {consumed} are not the beginning of the lease {lease}")
            step = min(end, rest[0][2])
            if step == rest[0][2]:
                rest.pop(0)
            else:
                rest[0][1] = step
            first = step
    return rest
