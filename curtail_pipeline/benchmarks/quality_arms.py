"""The arms of `bench quality`: who trains when, and under which settings."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import get_args

import polars as pl
from pydantic import Field

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.scheduling.curtailed import windows_of_record
from curtail_pipeline.scheduling.timing import Finished, SegmentPlan, advance
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.settings.experiment import Experiment, load_experiment, with_traces
from curtail_pipeline.settings.federation_settings import LossyName
from curtail_pipeline.signals.provider import make_provider
from curtail_pipeline.signals.whole_file import read_all
from curtail_pipeline.stages.deal import LEAST_SHARE
from curtail_pipeline.storage.records import Message, Record

CENTRAL = "central"
STEPS = 384
"""Of a job at the sites' own speed. A longer one's sites are as many times as fast, so that it has the same windows and
more rounds in each: the laptop experiment's have room for 1,607 steps, the published run's for 490."""

TUNED = {"embedding_lr": 1.6, "unembedding_lr": 1.6, "decay_fraction": 2.25}
"""Factors on the laptop experiment's settings of training, of all arms: what a job that ends after 384 steps trains
best with, in one place and by sites. Of 20 tried the centralised arm ends at 4.256 with them, at 4.288 with the
experiment's own, whose job goes on for 4,000 steps."""


class Arm(Record):
    """One way to train the same tokens. What is not given is as the laptop experiment has it."""

    name: str
    membership: str
    """`central`; `laptop`, by that experiment's traces; `mci`, by the published run's; `sitesN`, N sites always on."""
    batch: int = Field(default=1, ge=1)
    """Times as many tokens in a step, and as many fewer steps: what N synchronous sites would do."""
    step_tokens: int | None = None
    """Of a step with `batch` 1; as many as the laptop experiment's when not given."""
    round_steps: int = Field(default=16, ge=1)
    """Of a site in a whole round."""
    rounds: Mapping[str, bool | int | float | str] = Field(default_factory=dict)
    """Settings of the section `rounds`."""
    training: Mapping[str, float] = Field(default_factory=dict)
    """Factors on settings of the section `training`."""
    fresh_first: bool | None = None
    """Of the section `corpus`."""


class Stretch(Record):
    """A segment: steps of each member, round by round."""

    rounds: tuple[dict[str, int], ...]

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site for steps in self.rounds for site in steps))


class Task(Message):
    """What a child process does: one arm with one seed."""

    arm: Arm
    seed: int
    steps: int
    preset: str
    stretches: tuple[Stretch, ...]
    shares: dict[str, float]
    """Hours that each site is expected to train."""
    device: str = "cpu"
    source: str | None = None
    """Of text; the laptop experiment's when not given."""


class Curve(Message):
    """Held-out loss (nats per token) after each checkpoint of an arm."""

    arm: str
    seed: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    members: tuple[int, ...]
    """How many sites made each checkpoint; none the first."""
    parameters: int

    def rise(self, federated: bool) -> float:
        """The largest rise from a checkpoint to the next one that is federated, or that a site made alone."""
        rises = (after - before for before, after in pairwise(self.losses))
        made = zip(rises, self.members[1:], strict=True)
        return max((rise for rise, count in made if (count > 1) == federated), default=0.0)


def arms(grid: bool) -> tuple[Arm, ...]:
    """What is compared; with `grid` settings around the defaults too."""
    found = [
        Arm(name=CENTRAL, membership=CENTRAL),
        *(Arm(name=name, membership=name) for name in ("laptop", "mci", "sites2", "sites3", "sites8")),
        *(Arm(name=f"synchronous{n}", membership=CENTRAL, batch=n) for n in (2, 3)),
    ]
    if grid:
        for outer in ((0.7, 0.9), (0.7, 0.5), (1.0, 0.0), (1.0, 0.3)):
            rounds = {"outer_lr": outer[0], "outer_momentum": outer[1]}
            for state in ("own", "merged"):
                for where in ("laptop", "sites3"):
                    name = f"{where}, {outer[0]:g}/{outer[1]:g}, {state}"
                    found.append(Arm(name=name, membership=where, rounds={**rounds, "inner_state": state}))
        found += [Arm(name=f"sites3, H={h}", membership="sites3", round_steps=h) for h in (4, 8, 32)]
        found += [Arm(name=f"{CENTRAL}, lr x {f:g}", membership=CENTRAL, training=_rates(f)) for f in (0.7, 1.4)]
        found.append(Arm(name="laptop, text stays", membership="laptop", fresh_first=False))
        for codec in get_args(LossyName):
            found.append(Arm(name=f"laptop, {codec}", membership="laptop", rounds={"upload_codec": codec}))
    return tuple(arm.model_copy(update={"training": _tuned(arm.training)}) for arm in found)


def _tuned(factors: Mapping[str, float]) -> dict[str, float]:
    return {name: TUNED.get(name, 1.0) * factors.get(name, 1.0) for name in (*TUNED, *factors)}


def _rates(factor: float) -> dict[str, float]:
    return dict.fromkeys(("matrix_lr", "embedding_lr", "unembedding_lr"), factor)


def plan_of(arm: Arm, steps: int, mci: Path) -> tuple[tuple[Stretch, ...], dict[str, float]]:
    """The segments of an arm, by the decisions of a run where its membership comes from a trace; and how much each site
    is expected to train on the whole trace, by which text is dealt.

    Raises:
        SettingsError: a trace on which so many steps do not fit.
    """
    if arm.membership in ("laptop", "mci"):
        experiment, traces = _traced(arm, max(1.0, steps / STEPS), mci)
        whole, part = _decided(experiment, traces, 10**9), _decided(experiment, traces, steps)
        expected, done = _steps_of(whole), sum(_steps_of(part).values())
        if done < steps:
            raise SettingsError(f"the traces of {arm.membership} have windows for {done} steps, not {steps}; ask fewer")
        least = LEAST_SHARE * sum(expected.values())
        return part, {site: max(count, least) for site, count in expected.items()}
    count = 1 if arm.membership == CENTRAL else int(arm.membership.removeprefix("sites"))
    sites, left, rounds = [f"S{n}" for n in range(count)], steps // arm.batch, list[dict[str, int]]()
    while left > 0:
        full = min(arm.round_steps * count, left)
        rounds.append({site: n for place, site in enumerate(sites) if (n := (full + count - 1 - place) // count)})
        left -= full
    together = int(arm.rounds.get("max_rounds", 1))
    stretches = (Stretch(rounds=tuple(rounds[n : n + together])) for n in range(0, len(rounds), together))
    return tuple(stretches), dict.fromkeys(sites, 1.0)


def _steps_of(stretches: tuple[Stretch, ...]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in (part for stretch in stretches for part in stretch.rounds):
        for site, count in part.items():
            found[site] = found.get(site, 0.0) + count
    return found


def _traced(arm: Arm, speed: float, mci: Path) -> tuple[Experiment, pl.DataFrame]:
    own = load_experiment("laptop")
    fast = [site.model_copy(update={"steps_per_s": site.steps_per_s * speed}) for site in own.sites]
    own = own.model_copy(update={"sites": fast})
    # Steps of a site in a round are those that fit between its loading and the round's end.
    pace, lost = min(site.steps_per_s for site in fast), own.overheads.round_load_s + own.overheads.round_tail_s
    length = arm.round_steps / pace + min(2 * own.overheads.connect_s, lost + 0.5 / pace)
    rounds = own.rounds.model_copy(update={**arm.rounds, "round_s": length})
    own = own.model_copy(update={"rounds": rounds, "clock": own.clock.model_copy(update={"end": None})})
    if arm.membership == "mci":
        run = with_traces(own, mci)
        return run, read_all(mci, run).traces
    provider = make_provider(own.traces)
    span = provider.span()
    assert span is not None
    return own, pl.concat([provider.fetch(region, *span) for region in own.regions])


def _decided(experiment: Experiment, traces: pl.DataFrame, steps: int) -> tuple[Stretch, ...]:
    view = View.build(experiment, traces, windows_of_record(experiment, traces, experiment.policy), None)
    start = traces["time"].min()
    assert isinstance(start, datetime)
    now, job = start, Job(0, steps, start)
    found: list[Stretch] = []
    while not isinstance(part := advance(view, experiment, now, job), Finished):
        if isinstance(part, SegmentPlan):
            found.append(Stretch(rounds=tuple(dict(planned.steps) for planned in part.rounds)))
            job = replace(job, steps_done=job.steps_done + part.steps)
        now, job = part.end, replace(job, previous=part.sites)
    return tuple(found)
