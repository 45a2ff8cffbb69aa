"""Settings of sites, window rules, policies and rounds: all that scheduling depends on."""

from datetime import datetime
from typing import Any, Literal

from pydantic import Field

from curtail_pipeline.base import Section

PowerState = Literal["training", "idle", "start_up"]


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


class Battery(Section):
    """A battery beside a site: it fills up on surplus on-site power, and from the grid while that is curtailed."""

    capacity_kwh: float = Field(gt=0)
    charge_kw: float = Field(gt=0)
    """Most power it takes."""
    discharge_kw: float = Field(gt=0)
    """Most power it gives."""
    charge_efficiency: float = Field(default=0.95, gt=0, le=1)
    """Share of the power taken that is stored. 0.95 each way is a round trip of 90 %, usual for lithium-ion."""
    discharge_efficiency: float = Field(default=0.95, gt=0, le=1)
    """Share of the power drawn from the store that is given."""
    initial_share: float = Field(default=0.0, ge=0, le=1)
    """How full it is at the start; what it holds then counts as free of CO2."""
    reserve_share: float = Field(default=0.0, ge=0, le=1)
    """It is never discharged below this."""


class OnSiteGeneration(Section):
    """Generation behind the site's meter, free of CO2; what neither site nor battery takes is lost."""

    path: str
    """A CSV or Parquet file with the columns time (UTC) and kw; a value holds until the next one."""
    scale: float = Field(default=1.0, gt=0)
    """Multiplies the file's values, e.g. from one panel to a field of them."""


class Site(Section):
    """A GPU cluster in a grid region."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    region: str = Field(min_length=1)
    training_kw: float = Field(gt=0)
    idle_kw: float = Field(ge=0)
    start_up_kw: float | None = Field(default=None, ge=0)
    """Power while provisioning; idle power when not given."""
    pue: float = Field(default=1.0, ge=1.0)
    """Power usage effectiveness: facility power over IT power."""
    devices: int = Field(default=1, ge=1)
    device: str = "cpu"
    threads: int = Field(default=1, ge=1)
    """Torch threads of the resident trainer on CPU."""
    steps_per_s: float = Field(gt=0)
    """Optimiser steps per second that headless virtual time assumes."""
    share: float | None = Field(default=None, gt=0)
    """Share of the corpus; equal shares when no site gives one."""
    overheads: Overheads | None = None
    """Overrides the experiment's `overheads` as a whole."""
    battery: Battery | None = None
    on_site: OnSiteGeneration | None = None


def power_kw(site: Site, state: PowerState) -> float:
    """Facility power: IT power of that state times PUE."""
    if state == "training":
        return site.training_kw * site.pue
    if state == "start_up" and site.start_up_kw is not None:
        return site.start_up_kw * site.pue
    return site.idle_kw * site.pue


class PolicySettings(Section):
    """Which policy decides, and its parameters."""

    name: str = "paper"
    parameters: dict[str, Any] = Field(default_factory=dict)


class RoundSettings(Section):
    """Rounds and segments."""

    round_s: float = Field(default=600.0, gt=0)
    """From a round's start until its members stop training, loading included (600 s in the paper)."""
    open_local: bool = False
    """The prototype's rounds: while one member trains alone its round has no time limit; it ends when the membership
    changes, and a joining site interrupts it."""
    max_rounds: int = Field(default=12, ge=1)
    """Length cap of a segment."""
    outer_lr: float = Field(default=0.7, gt=0)
    outer_momentum: float = Field(default=0.9, ge=0, lt=1)
    """Nesterov outer step of DiLoCo (arXiv:2311.08105)."""
    norm_bound: float = Field(default=5.0, gt=1)
    """An update is refused when its norm exceeds this many medians of the last 20 accepted ones."""


class JobSettings(Section):
    """What there is to train."""

    steps: int = Field(ge=1)
    """Optimiser steps over all sites together."""
    baseline_steps: int | None = Field(default=None, ge=1)
    """Steps of the always-on baselines, where they are not the same."""
    deadline: datetime | None = None
