"""Whether a site works with what the plan was made with, and began where it was told to."""

from collections.abc import Mapping

from curtail_pipeline.federation.orders import Order, Result
from curtail_pipeline.storage.manifest import FRESH

COMPARED = ("torch", "corpus", "tokenizer")
"""What has to be the same at every site; of `torch` the release, not the build for one device (`+cu128`)."""


def differences(wanted: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """In what a site differs from the plan; None where in nothing that the plan names."""
    parts = [
        f"{name} {_short(found.get(name, 'unknown'))} instead of {_short(wanted[name])}"
        for name in COMPARED
        if name in wanted and found.get(name, "").split("+")[0] != wanted[name].split("+")[0]
    ]
    return ", ".join(parts) or None


def _short(value: str) -> str:
    return value[:12] if len(value) == 64 else value


def oddities(order: Order, result: Result) -> list[str]:
    """What is out of the ordinary in a result that may count all the same."""
    found = []
    if other := differences(order.terms.made_with, result.made_with):
        found.append(f"it works with {other}")
    if result.inner_state.begin != order.inner_state:
        found.append(f"it began {result.inner_state.begin}: the inner state {order.inner_state[:19]} was lost")
    if result.residual is not None and result.residual.begin != order.residual:
        found.append(f"what its last update left out ({order.residual[:19]}) was lost")
    return found


def unlike(order: Order, made_with: Mapping[str, str]) -> str | None:
    """Why what a site works with breaks the terms of an order; None when it does not."""
    if order.terms.differing == "refuse" and (other := differences(order.terms.made_with, made_with)):
        return f"it works with {other}; install the same there, or set federation.differing_site to record"
    return None


def breach(order: Order, result: Result) -> str | None:
    """Why a result breaks the terms of its order; None when it does not."""
    if other := unlike(order, result.made_with):
        return other
    began = [(result.inner_state.begin, order.inner_state)]
    if result.residual is not None:
        began.append((result.residual.begin, order.residual))
    for begin, wanted in began:
        excused = begin == FRESH and order.terms.lost_state == "fresh" and not order.replay
        if begin != wanted and not excused:
            return f"it began with state {begin}, not {wanted}"
    return None
