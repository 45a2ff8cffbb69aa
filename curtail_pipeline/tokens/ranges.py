"""Half-open ranges of sequence indices, as plans, reports and manifests write them.

`[epoch, start, stop]` are positions in the order in which a site's shard set is read in that pass; epochs count from
1. `[epoch, start, stop, owner]` are positions of another site's shard set, moved to this one by rebalancing.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from curtail_pipeline.errors import LedgerError

Range = tuple[int, int, int] | tuple[int, int, int, str]
"""(epoch, start, stop[, owner])."""
Ranges = Sequence[Range]


class Span(NamedTuple):
    """Positions `start <= i < stop` of `owner`'s shard set in pass `epoch`."""

    owner: str
    epoch: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


def _with_bounds(item: Range, start: int, stop: int) -> Range:
    return (item[0], start, stop, item[3]) if len(item) == 4 else (item[0], start, stop)


def parse_ranges(ranges: Ranges, site: str) -> list[Span]:
    """Spans of the ranges written for `site`.

    Raises:
        LedgerError: a range that is not three integers (and an owner), is empty, or starts below 0 or epoch 1.
    """
    spans = []
    for item in ranges:
        whole = len(item) in (3, 4) and all(type(part) is int for part in item[:3])
        if not whole or (len(item) == 4 and not isinstance(item[3], str)):
            raise LedgerError(f"{list(item)!r} is not a range of {site}; write [epoch, start, stop] in whole numbers")
        epoch, start, stop = item[:3]
        if epoch < 1 or start < 0 or stop <= start:
            raise LedgerError(
                f"range {list(item)!r} of {site} is empty or out of bounds; epochs count from 1 and 0 <= start < stop"
            )
        spans.append(Span(item[3] if len(item) == 4 else site, epoch, start, stop))
    return spans


def write_ranges(spans: Iterable[Span], site: str) -> list[Range]:
    """The ranges as `site` writes them; neighbours are joined."""
    return compact(
        (s.epoch, s.start, s.stop) if s.owner == site else (s.epoch, s.start, s.stop, s.owner) for s in spans
    )


def compact(ranges: Iterable[Range]) -> list[Range]:
    """The same sequences in the same order, neighbours joined and empty ranges dropped.

    Raises:
        LedgerError: a range ends before it begins.
    """
    out: list[Range] = []
    for item in ranges:
        epoch, start, stop = item[:3]
        if stop < start:
            raise LedgerError(f"range {list(item)} ends before it begins; write [epoch, start, stop]")
        if stop == start:
            continue
        if out and out[-1][0] == epoch and out[-1][2] == start and out[-1][3:] == item[3:]:
            out[-1] = _with_bounds(item, out[-1][1], stop)
        else:
            out.append(_with_bounds(item, start, stop))
    return out


def total(ranges: Ranges) -> int:
    """Sequences in the ranges."""
    return sum(item[2] - item[1] for item in ranges)


def take_prefix(ranges: Ranges, n: int) -> list[Range]:
    """The first `n` sequences of a lease, in its order.

    Raises:
        LedgerError: the ranges hold fewer than `n` sequences, or `n` is negative.
    """
    if not 0 <= n <= total(ranges):
        raise LedgerError(f"{n} sequences are not a prefix of a lease of {total(ranges)}; take between 0 and that")
    taken: list[Range] = []
    for item in ranges:
        if n == 0:
            break
        size = min(n, item[2] - item[1])
        taken.append(_with_bounds(item, item[1], item[1] + size))
        n -= size
    return taken


def drop_prefix(ranges: Ranges, n: int) -> list[Range]:
    """What `take_prefix(ranges, n)` leaves."""
    rest: list[Range] = []
    for item in ranges:
        size = min(n, item[2] - item[1])
        n -= size
        if item[1] + size < item[2]:
            rest.append(_with_bounds(item, item[1] + size, item[2]))
    return rest


def is_prefix(part: Ranges, whole: Ranges) -> bool:
    """Whether `part` reads the same sequences as the beginning of `whole`, however either is divided."""
    n = total(part)
    return 0 <= n <= total(whole) and compact(take_prefix(whole, n)) == compact(part)


def after_prefix(lease: Ranges, consumed: Ranges) -> list[Range]:
    """What remains of a lease once its beginning was consumed, neighbours joined.

    Raises:
        LedgerError: `consumed` is not the beginning of the lease.
    """
    if not is_prefix(consumed, lease):
        raise LedgerError(
            f"consumed ranges {compact(consumed)} are not the beginning of the lease {compact(lease)}; "
            "discard the report, the lease stays unconsumed"
        )
    return compact(drop_prefix(lease, total(consumed)))
