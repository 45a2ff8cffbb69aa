"""Policies: from windows, forecasts and the job's progress to a state per site.

A policy is one small class. Those that depend on windows alone compute a `Timeline` per site once, vectorised; `decide`
looks it up and the simulator walks it. Those that depend on the job decide anew at each event.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Protocol

import numpy as np

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.windows.config import PolicySettings, Site
from curtail_pipeline.windows.membership import Job, SiteDecision, SiteWindows, View
from curtail_pipeline.windows.timeline import FOREVER, Micros, Timeline, duration_us, from_us


class Policy(Protocol):
    """Turns a view into a state per site."""

    name: str

    def sites(self, view: View, us: int, job: Job) -> dict[str, SiteDecision]:
        """State per site at `us`, in the experiment's order; may use nothing the view did not know at `us`."""
        ...

    def next_event(self, view: View, us: int) -> int:
        """The next instant after `us` at which `sites` could differ; `FOREVER` when there is none."""
        ...


class TimelinePolicy:
    """Base of policies whose decision depends on windows and signals alone, never on the job."""

    name = ""

    def __init__(self, view: View) -> None:
        self.timelines = tuple(self.timeline(view, site) for site in view.sites)
        parts = [timeline.events for timeline in self.timelines]
        self.events: Micros = np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.int64)

    def timeline(self, view: View, site: Site) -> Timeline:
        """The site's stretches over all the view knows; causal: an entry before t must not depend on values after t."""
        raise NotImplementedError

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


def poll_grid(view: View, site: Site, us: Micros) -> Micros:
    """When the controller notices what happens at `us`: the next multiple of its polling interval (headless only)."""
    poll = duration_us(view.experiment.overheads_of(site).poll_s)
    if poll == 0 or view.as_of is not None:
        return us
    return np.where(us >= FOREVER, us, -(-us // poll) * poll)


class WindowPolicy(TimelinePolicy):
    """Trains whenever the site's window is open: start-up from the window's start, stop at its end.

    `paper` and `threshold` differ in the rule that makes the windows (exit delay), not here.
    """

    def timeline(self, view: View, site: Site) -> Timeline:
        windows = view.windows.get(site.name, SiteWindows.none())
        overheads = view.experiment.overheads_of(site)
        up, down = poll_grid(view, site, windows.start), poll_grid(view, site, windows.end)
        ready = up + duration_us(overheads.provisioning_s) + duration_us(overheads.connect_s)
        trains = ready < down
        return Timeline(up, ready, down, ready[trains], down[trains], windows.opened_by, windows.closed_by)


class PaperPolicy(WindowPolicy):
    """The prototype's rule: trains through the exit delay of its windows."""

    name = "paper"


class ThresholdPolicy(WindowPolicy):
    """Trains exactly while the signal is below the threshold."""

    name = "threshold"


POLICIES: dict[str, Callable[[View], Policy]] = {"paper": PaperPolicy, "threshold": ThresholdPolicy}


def make_policy(view: View) -> Policy:
    """The policy that the experiment names, bound to the view.

    Raises:
        PolicyError: no policy has that name.
    """
    name = view.experiment.policy.name
    if name not in POLICIES:
        raise PolicyError(f"unknown policy {name!r}: choose one of {', '.join(sorted(POLICIES))}")
    return POLICIES[name](view)


def parameter(settings: PolicySettings, name: str, default: Any) -> Any:
    return settings.parameters.get(name, default)
