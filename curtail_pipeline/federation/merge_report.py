"""What a merge says of itself, as a line of the journal keeps it."""

from typing import Literal

from pydantic import Field

from curtail_pipeline.storage.records import Record, Sha256


class AcceptedUpdate(Record):
    norm: float
    """L2 norm of the pseudo-gradient."""
    share: float
    """Weight in the mean."""


class WrittenFile(Record):
    sha256: Sha256
    bytes: int = Field(ge=0)


class MergeReport(Record):
    """What a merge did."""

    mode: Literal["local", "federated"]
    accepted: dict[str, AcceptedUpdate]
    refused: dict[str, str]
    """Site -> the reason."""
    empty: tuple[str, ...]
    """Sites that took no step."""
    weights: WrittenFile
    outer: WrittenFile
    delta: WrittenFile | None = None
    """What was subtracted from the round's starting weights, coded; None where the weights alone were written."""
    inner: WrittenFile | None = None
    """The accepted sites' inner states, averaged; None where they are not merged or there is none."""
    step_norm: float
    norm_history: tuple[float, ...]
    """The run's accepted norms, newest last, at most 20."""
    seconds: float
