"""What of the text has been used, and moving what is left to where it will be."""

import itertools
from collections.abc import Collection, Mapping
from typing import TypedDict

from curtail_pipeline.errors import LedgerError
from curtail_pipeline.tokens.ledger import Ledger
from curtail_pipeline.tokens.ranges import Span


class Usage(TypedDict):
    """What has been used of one shard set in one pass."""

    site: str
    epoch: int
    sequences: int
    tokens: int
    share: float
    """Of all tokens consumed."""


def summarise(ledger: Ledger, sequence_length: int) -> list[Usage]:
    """A row per shard set and pass."""
    rows: dict[tuple[str, int], int] = {}
    for site in ledger.to_json():
        for item in ledger.consumed(site):
            rows[site, item[0]] = rows.get((site, item[0]), 0) + item[2] - item[1]
    whole = max(1, ledger.sequences())
    return [
        {
            "site": site,
            "epoch": epoch,
            "sequences": sequences,
            "tokens": sequences * sequence_length,
            "share": sequences / whole,
        }
        for (site, epoch), sequences in sorted(rows.items())
    ]


def balance(
    ledger: Ledger,
    totals: Mapping[str, int],
    weights: Mapping[str, float],
    multiple: int = 1,
    tolerance: float = 0.1,
    receivers: Collection[str] | None = None,
) -> Ledger:
    """Move untouched text so that what every site has left of the current pass is in proportion to its weight.

    Args:
        totals: sequences per shard set; 0 of a site that has none and lives on what it is given.
        weights: how much each site will train, e.g. its expected curtailed hours; 0 gives all its text away.
        multiple: sequences of a step; only whole steps move.
        tolerance: a site short of its part by less than this fraction of it receives nothing, unless some site
            with weight 0 has text.
        receivers: who may be given text; all sites when not given.

    Returns:
        The ledger with the moves, or the same one where nothing needs to move. The current pass is the earliest that
        any site has text left of; within a site, what it would read last moves first.

    Raises:
        LedgerError: no site has sequences.
    """
    if not any(totals.values()):
        raise LedgerError(f"cannot balance: none of {', '.join(totals)} has sequences; build their shards")
    whole = sum(weights[site] for site in totals)
    if whole <= 0:
        return ledger
    epoch = min(_first_epoch(ledger, site, totals[site]) for site in totals if totals[site])
    left = {site: list(ledger.free(site, epoch, totals[site])) for site in totals}
    pool = sum(span.size for spans in left.values() for span in spans)
    surplus = {site: sum(s.size for s in left[site]) - pool * weights[site] / whole for site in totals}
    stranded = any(weights[site] == 0 and surplus[site] >= multiple for site in totals)
    for to in sorted(totals if receivers is None else receivers, key=lambda site: surplus[site]):
        if -surplus[to] <= tolerance * pool * weights[to] / whole and not stranded:
            continue
        for giver in sorted(totals, key=lambda site: -surplus[site]):
            n = int(min(-surplus[to], surplus[giver])) // multiple * multiple
            if n <= 0:
                continue
            surplus[giver] -= n
            surplus[to] += n
            for span in _take_last(left[giver], n):
                ledger = ledger.rebalance([(span.epoch, span.start, span.stop)], span.owner, to)
    return ledger


def fresh_first(ledger: Ledger, totals: Mapping[str, int], wanted: Mapping[str, int]) -> Ledger:
    """Move untouched text to sites that would begin another pass over their own while others have some of this pass.

    Args:
        totals: sequences per shard set.
        wanted: how many sequences a site is to train on next, also one without a shard set; sites that are not in it
            give first.

    Returns:
        The ledger with the moves, or the same one where nothing needs to move. No more moves than is wanted; within a
        site, what it would read last moves first.

    Raises:
        LedgerError: no site has sequences.
    """
    need = {site: count for site, count in wanted.items() if count > 0}
    if not need:
        return ledger
    if not any(totals.values()):
        raise LedgerError(f"no text to give: none of {', '.join(totals)} has sequences; build their shards")
    for epoch in itertools.count(min(_first_epoch(ledger, site, total) for site, total in totals.items() if total)):
        left = {site: list(ledger.free(site, epoch, totals.get(site, 0))) for site in {**totals, **need}}
        spare = {site: sum(span.size for span in left[site]) for site in left}
        for site in need:
            own = min(need[site], spare[site])
            need[site] -= own
            spare[site] -= own
        for to in sorted(need):
            for giver in sorted(left, key=lambda site: (site in wanted, -spare[site], site)):
                n = min(need[to], spare[giver])
                if giver == to or n <= 0:
                    continue
                need[to] -= n
                spare[giver] -= n
                for span in _take_last(left[giver], n):
                    ledger = ledger.rebalance([(span.epoch, span.start, span.stop)], span.owner, to)
        if not any(need.values()):
            return ledger
    raise AssertionError("there is always another pass")


def _first_epoch(ledger: Ledger, site: str, total: int) -> int:
    epoch = 1
    while next(ledger.free(site, epoch, total), None) is None:
        epoch += 1
    return epoch


def _take_last(spans: list[Span], n: int) -> list[Span]:
    """Remove the last `n` sequences from the spans and return them."""
    taken = []
    while n:
        span = spans.pop()
        size = min(n, span.size)
        taken.append(span._replace(start=span.stop - size))
        if size < span.size:
            spans.append(span._replace(stop=span.stop - size))
        n -= size
    return taken
