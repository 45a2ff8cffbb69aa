"""What the first process of a site's training tells the others: a line of JSON each, on their standard input.

Tensors travel between the processes' devices, by `torch.distributed`. The end of the input ends a process.
"""

from typing import Annotated, Literal

from pydantic import Field

from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.storage.records import Message, Record


class Build(Record):
    """Make a model and its optimisers, in place of those there are."""

    does: Literal["build"] = "build"
    config: str
    """The model's `config.json`."""
    settings: TrainingSettings
    sharded: bool
    """Whether each rank has but a share of the model."""
    threads: int
    """Of torch on a CPU."""


class WarmUp(Record):
    """Do steps on nothing."""

    does: Literal["warm_up"] = "warm_up"


class TakeWeights(Record):
    does: Literal["take_weights"] = "take_weights"


class GiveWeights(Record):
    does: Literal["give_weights"] = "give_weights"


class TakeState(Record):
    """Of the optimisers."""

    does: Literal["take_state"] = "take_state"


class GiveState(Record):
    does: Literal["give_state"] = "give_state"


class Reset(Record):
    """Forget what the optimisers remember."""

    does: Literal["reset"] = "reset"


class Step(Record):
    does: Literal["step"] = "step"
    multiplier: float
    """Of every learning rate."""
    momentum: float
    """Muon's."""


Command = Annotated[
    Build | WarmUp | TakeWeights | GiveWeights | TakeState | GiveState | Reset | Step, Field(discriminator="does")
]


class Told(Message):
    """A line."""

    command: Command
