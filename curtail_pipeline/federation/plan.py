"""The plan of a segment (`plan.json`), validated where it is read, and the replay of a realised segment."""

from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from curtail_pipeline.errors import FederationError

Range = tuple[int, int, int] | tuple[int, int, int, str]
"""(epoch, first, end[, owner]): sequences `[first, end)` of a shard set in an epoch, as `corpus.ranges` has them."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Parent(_Part):
    """The checkpoint a segment starts from; the values are store keys, `sha256` is that of the weights."""

    key: str
    weights: str
    sha256: str
    outer: str | None = None
    config: str


class PlannedRound(_Part):
    """A round whose steps per site are known beforehand (headless runs and replays)."""

    index: int
    start: str | None = None
    end: str | None = None
    steps: dict[str, int]
    lease: dict[str, list[Range]]
    stops: dict[str, str] = {}
    members: int | None = None
    """How many took part when the round was first run; a replay leaves out those whose update was refused."""


class OpenRounds(_Part):
    """Rounds that last a wall-clock time and go on until the membership changes (live and replay clocks)."""

    round_s: float = Field(gt=0)
    max_rounds: int = Field(ge=1)
    lease: dict[str, list[Range]]
    generation: int


class OuterSettings(_Part):
    lr: float
    momentum: float


class Plan(_Part):
    """A segment as asked for. Exactly one of `rounds` and `open` is given."""

    key: str
    attempt: int = 1
    generation: int = 0
    parent: Parent
    members: list[str] = Field(min_length=1)
    mode: Literal["local", "federated"]
    first_step: int = Field(ge=0)
    total_steps: int = Field(ge=0)
    seed: int = 0
    experiment_uri: str = "experiment.json"
    rounds: list[PlannedRound] | None = None
    open: OpenRounds | None = None
    inner_state: dict[str, str] = {}
    outer: OuterSettings
    norm_bound: float = Field(gt=1)
    norm_history: list[float] = []
    replay: bool = False
    stop_reason: str = "plan finished"
    """Why the segment ends when every planned round has run."""

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        if (self.rounds is None) == (self.open is None):
            raise ValueError("give either rounds or open")
        if self.mode == "local" and len(self.members) != 1:
            raise ValueError(f"mode local has one member, not {', '.join(self.members)}")
        for planned in self.rounds or []:
            strange = sorted(planned.steps.keys() - set(self.members))
            if strange:
                raise ValueError(f"round {planned.index} has steps for {strange[0]!r}, which is no member")
        return self


def parse_plan(content: Any, source: str) -> Plan:
    """Validate a plan; `source` names it in errors.

    Raises:
        FederationError: a key is missing or has the wrong type, or the plan contradicts itself.
    """
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, item['loc'])) or 'plan'}: {item['msg']}" for item in error.errors()]
        raise FederationError(f"{source} is not a plan of a segment: {'; '.join(parts)}; write it again") from error


def folder_of(plan_key: str) -> str:
    """The scratch folder that a plan lies in; everything a segment writes goes there."""
    return str(PurePosixPath(plan_key).parent)


def replay_rounds(segment: dict[str, Any]) -> list[dict[str, Any]]:
    """The rounds of a plan that repeats a realised segment (`segment.json`).

    Every site gets the steps and the ranges it really consumed. A site whose update was refused or lost is left out,
    and `members` keeps the number that the learning rate of the others depended on.
    """
    return [
        {
            "index": done["index"],
            "start": done["start"],
            "end": done["end"],
            "steps": dict(done["steps"]),
            "lease": {site: done["consumed"][site] for site in done["steps"]},
            "stops": {},
            "members": done["members"],
        }
        for done in segment["rounds"]
    ]
