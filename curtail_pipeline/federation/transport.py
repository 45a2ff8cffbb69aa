"""How orders reach sites and what comes back; Flower is one way, a list in memory another."""

from dataclasses import dataclass
from typing import Protocol

from curtail_pipeline.federation.orders import Order, Result


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
