"""The messages of a federation: what a site is asked for one round, what it answers, and how it shows life.

One frozen model per message, written and read through it on both sides.
"""

from typing import Annotated, Literal

from pydantic import Field

from curtail_pipeline.storage.records import Message, Record, Sha256, Utc

StopReason = Literal["steps", "deadline", "membership", "exhausted"]

FRESH = "fresh"
"""The name of an inner optimiser state that has seen no step."""

Range = tuple[int, int, int] | tuple[int, int, int, str]
"""(epoch, start, stop[, owner]), as `tokens.ranges` defines them."""
StateName = Annotated[str, Field(pattern=rf"^({FRESH}|sha256:[0-9a-f]{{64}})$")]
Loss = Annotated[float, Field(allow_inf_nan=False)]


class StoredWeights(Record):
    """Weights by reference."""

    key: str
    """Store key of a safetensors file."""
    sha256: Sha256


class Watch(Record):
    """The desired membership that a round follows while it runs."""

    key: str
    """Store key of it."""
    generation: int
    """A newer one that does not have the site train ends the round."""


class Order(Message):
    """One site's part in one round."""

    key: str = Field(min_length=1)
    attempt: int = Field(ge=0)
    round: int = Field(ge=0)
    site: str
    experiment_uri: str
    store: str
    parent: StoredWeights
    """The weights that the round starts from."""
    config: str
    """Store key of the model's `config.json`."""
    inner_state: StateName
    first_step: int = Field(ge=0)
    members: int = Field(ge=1)
    total_steps: int = Field(ge=1)
    max_steps: int = Field(ge=0)
    deadline_s: float | None
    """Wall seconds of training, counted from the first step."""
    lease: tuple[Range, ...]
    """Sequences to be trained on, in this order."""
    seed: int
    watch: Watch | None = None
    out: str = Field(min_length=1)
    """Store key for the new weights."""

    @property
    def name(self) -> tuple[str, int, int]:
        """What makes two orders the same order."""
        return (self.key, self.attempt, self.round)


class InnerStates(Record):
    """The inner optimiser state at the begin and at the end, by name."""

    begin: StateName
    end: StateName


class WrittenWeights(StoredWeights):
    """Weights that a site wrote."""

    bytes: int = Field(ge=0)


class Result(Message):
    """The answer to an order. Losses are mean nats per token of a step; null when no step was done."""

    site: str
    round: int
    parent_sha256: Sha256
    steps: int = Field(ge=0)
    tokens: int = Field(ge=0)
    consumed: tuple[Range, ...]
    loss_first: Loss | None
    loss_last: Loss | None
    loss_mean: Loss | None
    seconds: float
    tokens_per_s: float
    weights: WrittenWeights
    inner_state: InnerStates
    stop: StopReason


class Heartbeat(Message):
    """The sign of life that a trainer writes (`agents/<site>.json`)."""

    site: str
    pid: int
    at: Utc
    busy: bool


def agent_key(site: str) -> str:
    """Store key of the heartbeat that a site's trainer writes."""
    return f"agents/{site}.json"
