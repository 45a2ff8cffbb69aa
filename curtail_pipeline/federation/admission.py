"""Which results fit the orders that were sent; what the merge then makes of their weights is `merge`'s.

Everything a site says of its work is checked against what it was asked for: its tokens weigh its update, its ranges go
into the ledger, its steps move the learning rate of all.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Protocol

from curtail_pipeline.errors import LedgerError
from curtail_pipeline.federation.merge_pass import Update
from curtail_pipeline.federation.orders import Order, Result, StepSize, StoredDelta, StoredWeights
from curtail_pipeline.federation.terms import breach
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store
from curtail_pipeline.tokens.ranges import after_prefix, total

ROUNDING = 1e-4
"""Relative difference that sums of float32 losses may have."""


class HeldoutLoss(Protocol):
    """Nats per token of weights, or of what they are once moved, on held-out text; None for what cannot be read, which
    the merge refuses."""

    def __call__(self, weights: StoredWeights | StoredDelta) -> float | None: ...


def admit(
    orders: Mapping[str, Order], results: Mapping[str, Result], step: StepSize | None
) -> tuple[dict[str, Result], dict[str, str]]:
    """Split results into those that fit their orders and those refused, with the reason.

    Args:
        step: what a step takes; None where the plan does not say.
    """
    fitting: dict[str, Result] = {}
    refused: dict[str, str] = {}
    for site, result in sorted(results.items()):
        reason = misfit(orders[site], result, step)
        if reason is None:
            fitting[site] = result
        else:
            refused[site] = reason
    return fitting, refused


def misfit(order: Order, result: Result, step: StepSize | None) -> str | None:
    """Why a result does not fit its order; None when it does."""
    try:
        after_prefix(order.lease, result.consumed)
    except LedgerError as error:
        return str(error)
    if result.site != order.site:
        return f"its result is signed by {result.site!r}"
    if result.weights.key != order.out:
        return f"its weights lie at {result.weights.key!r}, not at {order.out!r}"
    if result.codec != order.codec:
        return f"its update is written by {result.codec}, not by {order.codec}"
    if (reason := breach(order, result) or _begun_elsewhere(order, result)) is not None:
        return reason
    if result.steps > order.max_steps:
        return f"it took {result.steps} steps, {order.max_steps} were asked for"
    if (result.tokens > 0) != (result.steps > 0) or (result.steps > 0) != (total(result.consumed) > 0):
        return f"{result.steps} steps, {result.tokens} tokens and {list(result.consumed)} do not agree"
    return (_miscounted(result, step) if step else None) or _implausible_loss(result)


def _begun_elsewhere(order: Order, result: Result) -> str | None:
    """Why a result is of other starting weights, where its merge would not tell."""
    if order.delivered and result.parent_sha256 != order.parent.sha256:
        return f"trained from {result.parent_sha256[:12]}, not from this round's {order.parent.sha256[:12]}"
    if order.own is not None and result.begun_sha256 is None:
        return "it began without its last update"
    may = order.own is not None or (order.goes_on and order.residual != FRESH)
    return None if may or result.begun_sha256 is None else "it began with an update that it was not told of"


def _miscounted(result: Result, step: StepSize) -> str | None:
    """Why steps, tokens and ranges cannot be of one piece of work."""
    if total(result.consumed) != result.steps * step.sequences:
        return (
            f"its ranges hold {total(result.consumed)} sequences, its {result.steps} steps took "
            f"{result.steps * step.sequences}"
        )
    if result.tokens != result.steps * step.tokens:
        return f"it claims {result.tokens} tokens, its {result.steps} steps took {result.steps * step.tokens}"
    return None


def _implausible_loss(result: Result) -> str | None:
    """Why the losses cannot be those of so many steps: there is one per step, and none is negative."""
    first, last, mean = result.loss_first, result.loss_last, result.loss_mean
    if (first is None, last is None, mean is None) != (result.steps == 0,) * 3:
        return f"it reports losses {first}, {last} and {mean} for {result.steps} steps"
    if first is None or last is None or mean is None:
        return None
    if min(first, last, mean) < 0:
        return f"it reports a negative loss ({min(first, last, mean):.4g}); a cross-entropy is never below 0"
    whole, ends = mean * result.steps, first if result.steps == 1 else first + last
    room = ROUNDING * max(1.0, whole, ends)
    alike = abs(whole - ends) <= room if result.steps <= 2 else whole >= ends - room
    if not alike or (result.steps == 1 and abs(first - last) > room):
        return f"its losses do not agree: {first:.4g} first, {last:.4g} last, {mean:.4g} on average of {result.steps}"
    return None


def gate(
    results: Mapping[str, Result], parent: StoredWeights, limit: float, heldout_loss: HeldoutLoss
) -> tuple[dict[str, Result], dict[str, str]]:
    """Split results into those whose weights do well enough on held-out text and those refused, with the reason.

    Args:
        parent: the weights the round started from.
        limit: nats per token that an update may lie above them.
    """
    before = heldout_loss(parent)
    fitting: dict[str, Result] = {}
    refused: dict[str, str] = {}
    for site, result in results.items():
        after = heldout_loss(_update(result, parent))
        if before is None or after is None or after - before <= limit:  # NaN is refused
            fitting[site] = result
        else:
            refused[site] = f"held-out loss {after:.4g} is more than {limit:g} above the round's start of {before:.4g}"
    return fitting, refused


def _update(result: Result, parent: StoredWeights) -> StoredWeights | StoredDelta:
    if result.codec == "fp32":
        return result.weights
    return StoredDelta(key=result.weights.key, sha256=result.weights.sha256, codec=result.codec, base=parent)


def fetch(
    store: Store, results: Mapping[str, Result], weights: Mapping[str, int], held: ExitStack
) -> tuple[list[Update], dict[str, str]]:
    """The weights of results as files, there as long as `held` is open; and why a site's cannot be had.

    Args:
        weights: tokens that each update speaks for.
    """
    updates: list[Update] = []
    refused: dict[str, str] = {}
    for site, result in results.items():
        try:
            path = held.enter_context(store.local(result.weights.key))
        except (NotStored, CorruptObject) as error:
            refused[site] = f"its weights cannot be had: {error}"
            continue
        tokens, sha256 = weights[site], result.weights.sha256
        updates.append(Update(site, path, tokens, sha256, result.parent_sha256, result.round, result.codec))
    return updates, refused
