"""A round that was answered and is not merged yet, where rounds overlap, as its server and its sites write it down."""

from collections.abc import Mapping

from pydantic import Field

from curtail_pipeline.federation.orders import Order, Result, StoredDelta, StoredWeights
from curtail_pipeline.federation.plan import answered_key
from curtail_pipeline.storage.records import Message, Sha256, Utc
from curtail_pipeline.storage.store import Store


class Delivered(Message):
    """What became of the files of an order that was answered before they were stored (`Order.delivered`)."""

    site: str
    round: int
    weights_sha256: Sha256
    seconds: float = Field(ge=0, allow_inf_nan=False)
    """From the answer on."""
    error: str = ""
    """Why they will never be in the store; empty where they are."""


class Merged(Message):
    """What a round's merge came to (`Order.coming`), for who fetches it before the order that starts from it."""

    weights: StoredWeights
    delta: StoredDelta | None


class Answered(Message):
    """What `answered.json` says of the last round that was answered: a server that takes over goes on behind it."""

    index: int
    start: Utc
    end: Utc
    first_step: int | None
    """What its orders began with; None where it follows from the steps that counted."""
    members: int
    stops: dict[str, str]
    orders: dict[str, Order]
    """Without their addresses, which are secrets."""
    results: dict[str, Result]
    refused: dict[str, str]
    """Answers that do not count, whatever follows; sites that were late are among them."""
    lost: dict[str, str]
    overdue: dict[str, str]
    wall_s: float
    """From the sending of the orders until the last answer is here and the round before it is merged."""

    def fitting(self, unmerged: Mapping[str, object]) -> dict[str, Result]:
        """Results that count as far as is known.

        Args:
            unmerged: sites whose update of the round before was refused. What they trained on top of it goes with it.
        """
        return {
            site: result
            for site, result in self.results.items()
            if site not in self.refused and not (site in unmerged and self.orders[site].own)
        }

    def unfounded(self, unmerged: Mapping[str, object]) -> dict[str, str]:
        """The others that were trained on top of a refused update, with the reason."""
        why = f"it goes on from its update of round {self.index - 1}, which was not merged"
        return {
            site: why
            for site in self.results
            if site not in self.refused and site in unmerged and self.orders[site].own
        }


def read_answered(store: Store, folder: str) -> Answered | None:
    """The last round that was answered; None before one was."""
    key = answered_key(folder)
    return store.read_record(key, Answered) if store.exists(key) else None
