"""Seconds that a site loses, and two sets of them to compare: the published prototype's, and this product's."""

from functools import cache
from pathlib import Path
from typing import Final, Literal

from pydantic import ConfigDict, Field

from curtail_pipeline.settings.section import Section

OverheadsName = Literal["paper", "product"]


class Overheads(Section):
    """Seconds a site spends provisioned but not training.

    Defaults are zero; experiments/paper.yaml has the prototype's.
    """

    provisioning_s: float = Field(default=0.0, ge=0)
    """From the decision to start a site until it is provisioned (240 in the paper)."""
    connect_s: float = Field(default=0.0, ge=0)
    """From provisioned until the agent is connected."""
    first_load_s: float = Field(default=0.0, ge=0)
    """From connected to the site's first step after a start, at the earliest."""
    round_load_s: float = Field(default=0.0, ge=0)
    """From a round's start to its first step, in later rounds."""
    round_tail_s: float = Field(default=0.0, ge=0)
    """From the end of training to the round's end, with two or more members."""
    round_tail_single_s: float = Field(default=0.0, ge=0)
    """The same with one member."""
    outer_step_s: float = Field(default=0.0, ge=0)
    """Merge after a round."""
    stop_drain_s: float = Field(default=0.0, ge=0)
    """From the decision to stop a site until it is off."""
    poll_s: float = Field(default=0.0, ge=0)
    """Interval at which the controller looks at the signal (10 in the paper)."""


PAPER: Final = Overheads(
    provisioning_s=240,
    connect_s=10,
    first_load_s=94.5,
    round_load_s=80,
    round_tail_s=50,
    round_tail_single_s=35,
    outer_step_s=2,
    stop_drain_s=60,
    poll_s=10,
)
"""Measured on the event log of the published run (arXiv:2602.22760); each of its rounds spawned and compiled anew."""


class MeasuredModel(Section):
    """What a federation of resident trainers lost with one size of model, wall seconds; the least of the rounds, as
    whatever else a machine does only adds."""

    preset: str
    parameters: int = Field(gt=0)
    weights_mib: float = Field(gt=0)
    """float32, as they travel."""
    rounds: int = Field(ge=1)
    """Behind each figure, but for join and first load."""
    join_s: float = Field(ge=0)
    """From the start of the federation's processes until a site's trainer and SuperNode were ready."""
    first_load_s: float = Field(ge=0)
    """From ready to the first step: the segment's submission, the model and its optimisers built, the weights read."""
    load_s: float = Field(ge=0)
    """From a later round's start to its first step."""
    tail_s: float = Field(ge=0)
    """From the last step of two members to the merge."""
    tail_single_s: float = Field(ge=0)
    """From the last step of one member to the merge."""
    merge_s: float = Field(ge=0)
    """Of two members' updates."""


class Measurement(Section):
    """One run of `curtail bench overheads`: what `--overheads product` reads."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    schema_: Literal[1] = Field(default=1, alias="schema")
    date: str
    """ISO 8601, UTC."""
    machine: str
    load_average: float
    """Of the machine over the last minute before the run: what others had it do."""
    version: str
    """Of curtail_pipeline."""
    commit: str | None
    """Of the checkout that was run, `-dirty` where it had changes; null where it was not in one."""
    command: str
    models: tuple[MeasuredModel, ...]

    @property
    def join_s(self) -> float:
        """The least of all: a site joins before it knows which model it will train."""
        return min(model.join_s for model in self.models)

    def model_for(self, parameters: int) -> MeasuredModel | None:
        """The smallest measured model that is no smaller; None where all are."""
        fitting = [model for model in self.models if model.parameters >= parameters]
        return min(fitting, key=lambda model: model.parameters, default=None)


MEASUREMENT_FILE: Final = Path(__file__).with_name("product_overheads.json")

D20_PARAMETERS: Final = 560_988_160
"""Of the published run's model."""


@cache
def measurement() -> Measurement:
    """The measurement that this version of the product came with."""
    return Measurement.model_validate_json(MEASUREMENT_FILE.read_bytes())


def product(round_s: float, parameters: int = D20_PARAMETERS) -> Overheads:
    """Of this product's resident trainers: model, compiled graph and optimiser stay in memory between rounds.

    For a model up to the largest that was measured (`measurement`), what was measured with the smallest that is no
    smaller. For larger ones, which no machine at hand could hold, an assumption: 20 s to join, and 2 % of a round for
    loading, sending and merging (of the default length where `rounds.round_s` is auto). All of it is at idle power.
    """
    model = measurement().model_for(parameters)
    if model is None:
        lost = 0.02 * round_s
        return Overheads(
            connect_s=20,
            round_load_s=lost / 2,
            round_tail_s=lost / 4,
            round_tail_single_s=lost / 4,
            outer_step_s=lost / 4,
        )
    return Overheads(
        connect_s=measurement().join_s,
        first_load_s=model.first_load_s,
        round_load_s=model.load_s,
        round_tail_s=model.tail_s,
        round_tail_single_s=model.tail_single_s,
        outer_step_s=model.merge_s,
    )
