"""What a site is asked for one round, and what it answers: plain JSON both ways."""

from typing import Any, Literal, TypedDict

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from curtail_pipeline.errors import TrainingError

StopReason = Literal["steps", "deadline", "membership", "exhausted"]

FRESH = "fresh"
"""The name of an inner optimiser state that has seen no step."""

HASH = r"sha256:[0-9a-f]{64}"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Parent(_Part):
    key: str
    """Store key of the weights (`model.safetensors`) the round starts from."""
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Watch(_Part):
    key: str
    """Store key of the desired membership."""
    generation: int


class Order(_Part):
    """One site's part in one round."""

    key: str = Field(min_length=1)
    attempt: int = Field(ge=0)
    round: int = Field(ge=0)
    site: str
    experiment_uri: str
    store: str
    parent: Parent
    config: str
    """Store key of the model's `config.json`."""
    inner_state: str = Field(pattern=f"^({FRESH}|{HASH})$")
    first_step: int = Field(ge=0)
    members: int = Field(ge=1)
    total_steps: int = Field(ge=1)
    max_steps: int = Field(ge=0)
    deadline_s: float | None
    """Wall seconds of training, counted from the first step."""
    lease: tuple[tuple[int | str, ...], ...]
    """Ranges of sequences as `corpus.ranges` defines them, to be trained on in this order."""
    seed: int
    watch: Watch | None = None
    out: str = Field(min_length=1)
    """Store key for the new weights."""

    @property
    def name(self) -> tuple[str, int, int]:
        """What makes two orders the same order."""
        return (self.key, self.attempt, self.round)


class InnerStates(TypedDict):
    begin: str
    end: str


class Weights(TypedDict):
    key: str
    sha256: str
    bytes: int


class Result(TypedDict):
    """The answer to an order. Losses are mean nats per token of a step; null when no step was done."""

    site: str
    round: int
    parent_sha256: str
    steps: int
    tokens: int
    consumed: list[list[Any]]
    loss_first: float | None
    loss_last: float | None
    loss_mean: float | None
    seconds: float
    tokens_per_s: float
    weights: Weights
    inner_state: InnerStates
    stop: StopReason


def parse_order(content: Any) -> Order:
    """Validate an order; keys it does not know are ignored, so that older sites accept newer orders.

    Raises:
        TrainingError: every missing key and wrong type, by its path.
    """
    try:
        return Order.model_validate(content)
    except ValidationError as error:
        parts = (
            f"{'.'.join(map(str, e['loc'])) or 'order'}: {e['msg']} (got {e['input']!r:.80})" for e in error.errors()
        )
        raise TrainingError(
            f"not a training order: {'; '.join(parts)}; send one as the plan of a round gives it"
        ) from None
