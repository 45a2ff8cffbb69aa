"""The ledger: which sequences of every site's shard set have been trained on along one lineage of checkpoints.

The unit is a half-open range of positions of one shard set (see `ranges`). A segment's plan leases ranges; what a
site trained on is a prefix of its lease, counted after the optimiser step that used it; the rest returns by not being
committed. A ledger is a value: every change makes a new one, so a lost or replayed segment cannot disturb its parent.

A position belongs to the site whose shard set it is in, unless `rebalance` moved it to another one.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import NotRequired, TypedDict

from curtail_pipeline.errors import LedgerError
from curtail_pipeline.settings.corpus_settings import Exhausted
from curtail_pipeline.tokens.ranges import (
    Range,
    Ranges,
    Span,
    is_prefix,
    parse_ranges,
    take_prefix,
    total,
    write_ranges,
)

Intervals = tuple[tuple[int, int], ...]

Moved = tuple[int, int, int, str]
"""(epoch, start, stop, site): a range that rebalancing gave to that site."""


class SiteRanges(TypedDict):
    """What a manifest writes of one site's shard set."""

    epoch: int
    consumed: list[Range]
    moved: NotRequired[list[Moved]]
    """Only where there is any."""


class Report(TypedDict):
    """What a site was given and what of it it trained on."""

    lease: Ranges
    consumed: Ranges


def _union(intervals: Iterable[tuple[int, int]]) -> Intervals:
    """Sorted, disjoint and joined; the input must not overlap."""
    out: list[tuple[int, int]] = []
    for start, stop in sorted(intervals):
        if out and start < out[-1][1]:
            raise LedgerError(
                f"sequences [{max(start, out[-1][0])}, {min(stop, out[-1][1])}) are counted twice; "
                "every sequence of a pass is trained on once"
            )
        if out and start == out[-1][1]:
            out[-1] = (out[-1][0], stop)
        else:
            out.append((start, stop))
    return tuple(out)


def _minus(intervals: Iterable[tuple[int, int]], holes: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The intervals without the (sorted, disjoint) holes, in the order of the intervals."""
    holes = tuple(holes)
    for start, stop in intervals:
        for low, high in holes:
            if high <= start or low >= stop:
                continue
            if low > start:
                yield start, low
            start = max(start, high)
            if start >= stop:
                break
        if start < stop:
            yield start, stop


class Ledger:
    """Consumed ranges per shard set and pass. Immutable; `Ledger()` is the empty one of an initialised model."""

    def __init__(
        self,
        consumed: Mapping[tuple[str, int], Iterable[tuple[int, int]]] | None = None,
        moved: Iterable[tuple[Span, str]] = (),
    ) -> None:
        self._consumed = {key: _union(value) for key, value in sorted((consumed or {}).items()) if value}
        self._moved = tuple(sorted(moved))
        for key in {(span.owner, span.epoch) for span, _ in self._moved}:
            _union(self._moved_intervals(*key))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ledger) and (self._consumed, self._moved) == (other._consumed, other._moved)

    def __hash__(self) -> int:
        return hash((tuple(self._consumed.items()), self._moved))

    def __repr__(self) -> str:
        return f"Ledger({self.to_json()!r})"

    # ---- JSON ------------------------------------------------------------------------------------------------------

    @classmethod
    def from_json(cls, content: Mapping[str, SiteRanges]) -> "Ledger":
        """Read the `ledger` of a checkpoint manifest.

        Raises:
            LedgerError: a malformed range, or ranges that overlap.
        """
        consumed: dict[tuple[str, int], list[tuple[int, int]]] = {}
        moved = []
        for site, entry in content.items():
            if not isinstance(entry, Mapping) or "consumed" not in entry:
                raise LedgerError(f"ledger entry {site!r} has no 'consumed' ranges; restore the manifest")
            for span in parse_ranges(entry["consumed"], site):
                consumed.setdefault((span.owner, span.epoch), []).append((span.start, span.stop))
            for item in entry.get("moved", ()):
                if len(item) != 4 or not isinstance(item[3], str):
                    raise LedgerError(f"moved range {list(item)!r} of {site} names no site; restore the manifest")
                moved.append((parse_ranges([(item[0], item[1], item[2])], site)[0], item[3]))
        return cls(consumed, moved)

    def to_json(self, sites: Iterable[str] = ()) -> dict[str, SiteRanges]:
        """{site: {"epoch", "consumed", "moved" (only where there is any)}}; `sites` are listed even when untouched."""
        names = {*sites, *(owner for owner, _ in self._consumed), *(span.owner for span, _ in self._moved)}
        out: dict[str, SiteRanges] = {}
        for site in sorted(names):
            out[site] = {"epoch": self.epoch(site), "consumed": self.consumed(site)}
            moved = [(s.epoch, s.start, s.stop, to) for s, to in self._moved if s.owner == site]
            if moved:
                out[site]["moved"] = moved
        return out

    # ---- what has been consumed ------------------------------------------------------------------------------------

    def consumed(self, site: str) -> list[Range]:
        """Compacted ranges of the site's shard set, by whichever site they were trained on."""
        return [(e, a, b) for (owner, e), ranges in self._consumed.items() if owner == site for a, b in ranges]

    def epoch(self, site: str) -> int:
        """The latest pass over the site's shard set that has begun; 1 at the start."""
        return max((epoch for owner, epoch in self._consumed if owner == site), default=1)

    def sequences(self, site: str | None = None) -> int:
        """Sequences consumed of one shard set, or of all."""
        return sum(b - a for (owner, _), r in self._consumed.items() if site in (None, owner) for a, b in r)

    def tokens(self, sequence_length: int) -> int:
        """Training tokens consumed: every sequence counts `sequence_length` predicted tokens."""
        return self.sequences() * sequence_length

    # ---- leases ----------------------------------------------------------------------------------------------------

    def lease(
        self,
        site: str,
        n_sequences: int,
        total_sequences: int,
        exhausted: Exhausted = "next_epoch",
        multiple: int = 1,
    ) -> list[Range]:
        """The first `n_sequences` that the site has not trained on, as ranges in reading order.

        Within a pass the site's own positions come first, then those moved to it. Once everything is consumed,
        `next_epoch` goes on with the next pass and `done` gives a shorter lease: a multiple of `multiple` (the
        sequences of a step), empty when the site has no full step left.

        Raises:
            LedgerError: the site has no sequences and was given none, or a negative number is asked for.
        """
        if n_sequences < 0 or (total_sequences < 1 and all(to != site for _, to in self._moved)):
            raise LedgerError(f"cannot lease {n_sequences} of {site}'s {total_sequences} sequences; build its shards")
        taken: list[Span] = []
        need = n_sequences
        for span in self._free(site, total_sequences, exhausted):
            if not need:
                break
            taken.append(span._replace(stop=span.start + min(need, span.size)))
            need -= taken[-1].size
        ranges = write_ranges(taken, site)
        return take_prefix(ranges, total(ranges) // multiple * multiple) if need else ranges

    def _free(self, site: str, total_sequences: int, exhausted: Exhausted) -> Iterator[Span]:
        """What the site may train on, in order; endless with `next_epoch`, where the site has text of its own."""
        received = max((span.epoch for span, to in self._moved if to == site), default=1)
        for epoch in itertools.count(1):
            if (exhausted == "done" or not total_sequences) and epoch > received:
                return
            yield from self.free(site, epoch, total_sequences if exhausted == "next_epoch" or epoch == 1 else 0)

    def free(self, site: str, epoch: int, total_sequences: int) -> Iterator[Span]:
        """What of a pass belongs to the site and is untouched: of its own shard set, then of what was moved to it."""
        left = _minus(((0, total_sequences),), self._done(site, epoch))
        for start, stop in _minus(left, _union(self._moved_intervals(site, epoch))):
            yield Span(site, epoch, start, stop)
        for span, to in self._moved:
            if to == site and span.epoch == epoch:
                for start, stop in _minus(((span.start, span.stop),), self._done(span.owner, epoch)):
                    yield span._replace(start=start, stop=stop)

    def _done(self, owner: str, epoch: int) -> Intervals:
        return self._consumed.get((owner, epoch), ())

    def _moved_intervals(self, owner: str, epoch: int) -> list[tuple[int, int]]:
        return [(s.start, s.stop) for s, _ in self._moved if (s.owner, s.epoch) == (owner, epoch)]

    def _holder(self, span: Span) -> set[str]:
        """The sites that parts of the span belong to."""
        moved = [(s, to) for s, to in self._moved if (s.owner, s.epoch) == (span.owner, span.epoch)]
        holders = {to for s, to in moved if s.start < span.stop and span.start < s.stop}
        if any(_minus(((span.start, span.stop),), ((s.start, s.stop) for s, _ in moved))):
            holders.add(span.owner)
        return holders

    # ---- changes ---------------------------------------------------------------------------------------------------

    def commit(self, reports: Mapping[str, Report], totals: Mapping[str, int] | None = None) -> "Ledger":
        """Count what the sites of a segment or round trained on: {site: {"lease": [...], "consumed": [...]}}.

        The lease is the plan's, not the report's, so that a late or invented report cannot count. Either all reports
        are counted or none. `totals` (sequences per shard set) also bounds the ranges.

        Raises:
            LedgerError: a consumed range that is no prefix of the lease, was counted before, belongs to another
                site, or lies outside the shard set.
        """
        added: dict[tuple[str, int], list[tuple[int, int]]] = {}
        for site, report in reports.items():
            leased, consumed = parse_ranges(report["lease"], site), parse_ranges(report["consumed"], site)
            if not is_prefix(write_ranges(consumed, site), write_ranges(leased, site)):
                raise LedgerError(
                    f"{site} reports {list(map(list, report['consumed']))} as trained, which is no prefix of its lease "
                    f"{list(map(list, report['lease']))}; discard the report, the lease stays unconsumed"
                )
            for span in leased:
                if self._holder(span) != {site}:
                    raise LedgerError(
                        f"range {[*span]} leased to {site} is of {', '.join(sorted(self._holder(span) - {site}))}: "
                        "plan the segment again from its parent's ledger"
                    )
            for span in consumed:
                if totals is not None and span.stop > totals.get(span.owner, 0):
                    raise LedgerError(
                        f"range {[*span]} of {site} ends beyond the {totals.get(span.owner, 0)} sequences of "
                        f"{span.owner}; the shards are not those the lease was planned with"
                    )
                added.setdefault((span.owner, span.epoch), []).append((span.start, span.stop))
        return self._with(added)

    def _with(self, added: Mapping[tuple[str, int], list[tuple[int, int]]]) -> "Ledger":
        consumed: dict[tuple[str, int], Iterable[tuple[int, int]]] = dict(self._consumed)
        for key, intervals in added.items():
            try:
                consumed[key] = _union([*self._done(*key), *intervals])
            except LedgerError as error:
                raise LedgerError(f"shard set {key[0]}, epoch {key[1]}: {error}") from error
        return Ledger(consumed, self._moved)

    def rebalance(self, ranges: Ranges, owner: str, to: str) -> "Ledger":
        """Give untouched ranges of `owner`'s shard set to the site `to` (`owner` itself takes them back).

        Raises:
            LedgerError: a range has been trained on in part; only untouched text can move.
        """
        moved = list(self._moved)
        for span in parse_ranges(ranges, owner):
            left = list(_minus(((span.start, span.stop),), self._done(span.owner, span.epoch)))
            if left != [(span.start, span.stop)]:
                raise LedgerError(
                    f"range {[*span]} has been trained on in part and cannot move to {to}; move untouched ranges"
                )
            hole = ((span.start, span.stop),)
            moved = [
                (s._replace(start=a, stop=b), holder)
                for s, holder in moved
                for a, b in (
                    _minus(((s.start, s.stop),), hole)
                    if (s.owner, s.epoch) == (span.owner, span.epoch)
                    else ((s.start, s.stop),)
                )
            ]
            if to != span.owner:
                moved.append((span, to))
        return Ledger(self._consumed, moved)

    def verify_against(self, parent: "Ledger", consumed: Mapping[str, Ranges]) -> None:
        """Check that this ledger is the parent's plus what the segment's sites consumed, each sequence once.

        `consumed`: per site what it trained on in the segment.

        Raises:
            LedgerError: a range counted twice, missing or invented, or moved after it was trained on.
        """
        expected = Ledger(parent._consumed, self._moved)
        for span, to in set(self._moved) - set(parent._moved):
            for low, high in parent._done(span.owner, span.epoch):
                old = any(
                    s.owner == span.owner
                    and s.epoch == span.epoch
                    and s.start <= max(low, span.start)
                    and min(high, span.stop) <= s.stop
                    and holder == to
                    for s, holder in parent._moved
                )
                if low < span.stop and span.start < high and not old:
                    raise LedgerError(f"range {[*span]} moved to {to} after it was trained on; the ledger is damaged")
        for site, ranges in consumed.items():
            added: dict[tuple[str, int], list[tuple[int, int]]] = {}
            for span in parse_ranges(ranges, site):
                if expected._holder(span) != {site}:
                    raise LedgerError(f"{site} consumed {[*span]}, which belongs to another site")
                added.setdefault((span.owner, span.epoch), []).append((span.start, span.stop))
            expected = expected._with(added)
        if expected._consumed != self._consumed:
            keys = sorted(set(expected._consumed) | set(self._consumed))
            site, epoch = next(k for k in keys if expected._done(*k) != self._done(*k))
            raise LedgerError(
                f"ledger of {site}, epoch {epoch}, is {list(self._done(site, epoch))}, but its parent and the segment "
                f"make {list(expected._done(site, epoch))}; the checkpoint must not be used"
            )
