"""Policies: from windows, forecasts and the job's progress to a state per site.

A policy is one small class. Those that depend on windows alone compute a `Timeline` per site once, vectorised; `decide`
looks it up and the simulator walks it. Those that depend on the job decide anew at each event.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from datetime import datetime
from functools import cached_property
from importlib import import_module
from typing import ClassVar, Protocol, Self

import numpy as np
from pydantic import ValidationError

from curtail_pipeline.emissions.battery import supplied_stretches
from curtail_pipeline.errors import PolicyError
from curtail_pipeline.scheduling.timeline import Timeline
from curtail_pipeline.scheduling.view import Job, SiteDecision, SiteWindows, View
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.settings.rule_settings import RULE_PARAMETERS
from curtail_pipeline.settings.section import Section
from curtail_pipeline.settings.sites import Site, power_kw
from curtail_pipeline.times import FOREVER, Micros, duration_us, from_us


class Policy(Protocol):
    """Turns a view into a state per site."""

    name: str

    @property
    def plans_rounds(self) -> bool:
        """Whether the last states were chosen knowing which sites keep others waiting, whatever `rounds.sync` says."""
        ...

    def sites(self, view: View, us: int, job: Job) -> dict[str, SiteDecision]:
        """State per site at `us`, in the experiment's order; may use nothing the view did not know at `us`."""
        ...

    def next_event(self, view: View, us: int) -> int:
        """The next instant after `us` at which `sites` could differ; `FOREVER` when there is none."""
        ...


class Parameters(Section):
    """Base of a policy's own parameters: what `policy.parameters` holds beside the keys of the window rule."""

    @classmethod
    def of(cls, settings: PolicySettings) -> Self:
        """Validate the chooser's part of the parameters.

        Raises:
            PolicyError: an unknown key or a wrong value.
        """
        own = {key: value for key, value in settings.parameters.items() if key not in RULE_PARAMETERS}
        try:
            return cls.model_validate(own)
        except ValidationError as error:
            item = error.errors()[0]
            where = ".".join(str(part) for part in item["loc"])
            known = ", ".join(sorted(cls.model_fields)) or "none of its own"
            near = difflib.get_close_matches(where, [*cls.model_fields, *sorted(RULE_PARAMETERS)], 1, 0.7)
            meant = f"; did you mean {near[0]!r}?" if near and near[0] != where else ""
            raise PolicyError(
                f"policy {settings.name!r}, parameter {where}: {item['msg'].removeprefix('Value error, ')} "
                f"(got {item['input']!r}; it takes {known}){meant}"
            ) from error


class NoParameters(Parameters):
    """Of policies that have none."""


class TimelinePolicy(ABC):
    """Base of policies whose decision depends on windows and signals alone, never on the job."""

    name = ""
    plans_rounds = False

    parameters: ClassVar[type["Parameters"]]

    def __init__(self, view: View) -> None:
        self.settings = self.parameters.of(view.experiment.policy)
        self.timelines = tuple(
            self.timeline(view, site).clipped(view.start_us, start_up_us(view.experiment.overheads_of(site)))
            for site in view.sites
        )

    @cached_property
    def events(self) -> Micros:
        """Every instant at which some site's state changes, ascending."""
        return np.unique(np.concatenate([timeline.events for timeline in self.timelines]))

    @abstractmethod
    def timeline(self, view: View, site: Site) -> Timeline:
        """The site's stretches over all the view knows; causal: an entry before t must not depend on values after t."""

    def sites(self, view: View, us: int, job: Job) -> dict[str, SiteDecision]:
        return {
            site.name: state_at(timeline, us, job.started)
            for site, timeline in zip(view.sites, self.timelines, strict=True)
        }

    def next_event(self, view: View, us: int) -> int:
        index = int(np.searchsorted(self.events, us, side="right"))
        return int(self.events[index]) if index < len(self.events) else FOREVER


def state_at(timeline: Timeline, us: int, started: datetime) -> SiteDecision:
    """Look a timeline up."""
    i = int(np.searchsorted(timeline.up, us, side="right")) - 1
    if i < 0:
        return SiteDecision("off", "not curtailed", started)
    down, ready = int(timeline.down[i]), int(timeline.ready[i])
    since_ready = from_us(ready)
    if us >= down:
        return SiteDecision("off", timeline.closed[i] or "window closed", from_us(down), since_ready)
    reason = timeline.opened[i] or "curtailed"
    if us < ready:
        return SiteDecision("warm", f"starting up; {reason}", from_us(timeline.up[i]), since_ready)
    j = int(np.searchsorted(timeline.train, us, side="right")) - 1
    if j >= 0 and us < timeline.until[j] and timeline.train[j] >= timeline.up[i]:
        return SiteDecision("train", reason, from_us(timeline.train[j]), since_ready)
    held_since = max(ready, int(timeline.until[j])) if j >= 0 else ready
    return SiteDecision("warm", "signal above the threshold: holding at idle power", from_us(held_since), since_ready)


def noticed_windows(view: View, site: Site) -> SiteWindows:
    """The site's windows as the controller notices them: on its polling grid, joined where they touch.

    A live controller looks when it looks; the grid is for recorded views.
    """
    windows = with_own_energy(view, site, view.windows.get(site.name, SiteWindows.none()))
    poll = duration_us(view.experiment.overheads_of(site).poll_s)
    start, end = windows.start, windows.end
    if poll and view.as_of is None:
        start = -(-start // poll) * poll
        end = np.where(end >= FOREVER, end, -(-end // poll) * poll)
    seen = np.flatnonzero(start < end)
    start, end = start[seen], end[seen]
    fresh = np.ones(len(seen), dtype=bool)
    fresh[1:] = start[1:] > end[:-1]
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(seen))[: len(first)] - 1
    return SiteWindows(
        start[first],
        end[last],
        [windows.opened_by[seen[k]] for k in first],
        [windows.closed_by[seen[k]] for k in last],
    )


def with_own_energy(view: View, site: Site, windows: SiteWindows) -> SiteWindows:
    """The site's windows, and when it can train on its battery or its on-site generation instead."""
    generation = view.on_site.get(site.name)
    if site.battery is None and generation is None:
        return windows
    signal = view.signals.get(site.region)
    if signal is None:
        return windows
    stretches = supplied_stretches(
        site,
        power_kw(site, "training"),
        (windows.start, windows.end),
        generation,
        max(int(signal.times[0]), view.start_us),
        signal.valid_until,
    )
    low = np.concatenate((windows.start, [start for start, _, _ in stretches])).astype(np.int64)
    high = np.concatenate((windows.end, [end for _, end, _ in stretches])).astype(np.int64)
    opened = [*windows.opened_by, *(why for _, _, why in stretches)]
    closed = [*windows.closed_by, *(f"no longer {why}" for _, _, why in stretches)]
    order = np.argsort(low, kind="stable")
    return SiteWindows(low[order], high[order], [opened[k] for k in order], [closed[k] for k in order])


def start_up_us(overheads: Overheads) -> int:
    """From the decision to start a site until it may train."""
    return duration_us(overheads.provisioning_s) + duration_us(overheads.connect_s)


def lost_at_start_us(overheads: Overheads) -> int:
    """From the decision to start a site until its first step, at the earliest."""
    return start_up_us(overheads) + duration_us(max(overheads.first_load_s, overheads.round_load_s))


class WindowPolicy(TimelinePolicy):
    """Trains whenever the site's window is open: start-up from the window's start, stop at its end.

    `paper` and `threshold` differ in the rule that makes the windows (exit delay), not here.
    """

    parameters = NoParameters

    def timeline(self, view: View, site: Site) -> Timeline:
        windows = noticed_windows(view, site)
        up, down = windows.start, windows.end
        ready = up + start_up_us(view.experiment.overheads_of(site))
        trains = ready < down
        return Timeline(up, ready, down, ready[trains], down[trains], windows.opened_by, windows.closed_by)


class PaperPolicy(WindowPolicy):
    """The prototype's rule: trains through the exit delay of its windows."""

    name = "paper"


class ThresholdPolicy(WindowPolicy):
    """Trains exactly while the signal is below the threshold."""

    name = "threshold"


class HysteresisPolicy(WindowPolicy):
    """Trains while the windows of the default rule are open: two thresholds and a short exit delay."""

    name = "hysteresis"


PLANNING_POLICIES = ("forecast", "budget")
"""Policies that use a forecast and need a deadline."""

POLICIES: Mapping[str, str] = {
    "paper": "curtail_pipeline.scheduling.policies:PaperPolicy",
    "threshold": "curtail_pipeline.scheduling.policies:ThresholdPolicy",
    "hysteresis": "curtail_pipeline.scheduling.policies:HysteresisPolicy",
    "boundary": "curtail_pipeline.scheduling.policy_boundary:BoundaryPolicy",
    "forecast": "curtail_pipeline.scheduling.policy_forecast:ForecastPolicy",
    "budget": "curtail_pipeline.scheduling.policy_budget:BudgetPolicy",
}
"""Policy name -> its class. A new policy is one class and one line here, and a window rule under its name."""


def make_policy(view: View) -> Policy:
    """The policy that the experiment names, bound to the view.

    Raises:
        PolicyError: no policy has that name, or it does not understand its parameters.
    """
    return _class_of(view.experiment.policy.name)(view)


def check_parameters(settings: PolicySettings) -> None:
    """Refuse parameters of a policy that are neither its own nor its window rule's.

    Raises:
        PolicyError: as `make_policy`.
    """
    _class_of(settings.name).parameters.of(settings)


class _PolicyClass(Protocol):
    """A policy's class."""

    parameters: type[Parameters]

    def __call__(self, view: View) -> Policy: ...


def _class_of(name: str) -> _PolicyClass:
    if name not in POLICIES:
        raise PolicyError(f"unknown policy {name!r}: choose one of {', '.join(sorted(POLICIES))}")
    module, attribute = POLICIES[name].split(":")
    found: _PolicyClass = getattr(import_module(module), attribute)
    return found


def policy_of(view: View) -> Policy:
    """The view's policy, made once. Errors as of `make_policy`."""
    return view.once(make_policy)
