"""Which results fit the orders that were sent; what the merge then makes of their weights is `merge`'s."""

from collections.abc import Mapping
from contextlib import ExitStack

from curtail_pipeline.errors import LedgerError
from curtail_pipeline.federation.merge import Update
from curtail_pipeline.federation.orders import Order, Result
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store
from curtail_pipeline.tokens.ranges import after_prefix, total


def admit(orders: Mapping[str, Order], results: Mapping[str, Result]) -> tuple[dict[str, Result], dict[str, str]]:
    """Split results into those that fit their orders and those refused, with the reason."""
    fitting: dict[str, Result] = {}
    refused: dict[str, str] = {}
    for site, result in sorted(results.items()):
        reason = misfit(orders[site], result)
        if reason is None:
            fitting[site] = result
        else:
            refused[site] = reason
    return fitting, refused


def misfit(order: Order, result: Result) -> str | None:
    """Why a result does not fit its order; None when it does."""
    try:
        after_prefix(order.lease, result.consumed)
    except LedgerError as error:
        return str(error)
    if result.site != order.site:
        return f"its result is signed by {result.site!r}"
    if result.weights.key != order.out:
        return f"its weights lie at {result.weights.key!r}, not at {order.out!r}"
    if result.inner_state.begin != order.inner_state:
        return f"it began with state {result.inner_state.begin}, not {order.inner_state}"
    if result.steps > order.max_steps:
        return f"it took {result.steps} steps, {order.max_steps} were asked for"
    if (result.tokens > 0) != (result.steps > 0) or (result.steps > 0) != (total(result.consumed) > 0):
        return f"{result.steps} steps, {result.tokens} tokens and {list(result.consumed)} do not agree"
    return None


def fetch(store: Store, results: Mapping[str, Result], held: ExitStack) -> tuple[list[Update], dict[str, str]]:
    """The weights of results as files, there as long as `held` is open; and why a site's cannot be had."""
    updates: list[Update] = []
    refused: dict[str, str] = {}
    for site, result in results.items():
        try:
            path = held.enter_context(store.local(result.weights.key))
        except (NotStored, CorruptObject) as error:
            refused[site] = f"its weights cannot be had: {error}"
            continue
        tokens, sha256 = result.tokens, result.weights.sha256
        updates.append(Update(site, path, tokens, sha256, result.parent_sha256, result.round))
    return updates, refused
