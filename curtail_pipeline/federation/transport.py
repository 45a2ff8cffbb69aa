"""How orders reach sites and what comes back; Flower is one way, a list in memory another."""

from dataclasses import dataclass
from typing import Protocol

from curtail_pipeline.errors import one_line
from curtail_pipeline.federation.orders import Order, Result

LONGEST = 1000
"""Characters of what a site gives as a reason, in records and logs."""


def site_said(text: str) -> str:
    """A reason that a site gives, fit to be written down here: whatever it sends is one line of so many characters."""
    line = one_line(" ".join(text[: 4 * LONGEST].split()))
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


@dataclass(frozen=True)
class Failure:
    """An order that will have no result, and why: the site is lost to the round."""

    reason: str
    round: int | None = None
    """Of the order; None for the last one sent."""


@dataclass(frozen=True)
class Malformed:
    """An answer that is no result of this version: it is refused, the site is not lost."""

    reason: str
    round: int | None = None
    """As in `Failure`."""


Reply = Result | Failure | Malformed


class Transport(Protocol):
    """How orders reach sites. `poll` returns at once with whatever has arrived since the last call."""

    def send(self, site: str, order: Order) -> None: ...

    def poll(self) -> list[tuple[str, Reply]]: ...
