"""What each site should do now: one pure decision, shared by the sensor, the headless run and the simulator.

`View` is what is known (settings, signals, windows, forecasts); `decide(view, now, job)` turns it into a state per site
and a mode. It reads no clock and no file, so that the same view gives the same decision anywhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from curtail_pipeline.errors import TraceError
from curtail_pipeline.scheduling.joint_rounds import paying
from curtail_pipeline.scheduling.policies import policy_of
from curtail_pipeline.scheduling.view import Job, SiteDecision, View
from curtail_pipeline.times import from_us, iso, to_us

Mode = Literal["pause", "local", "federated"]


@dataclass(frozen=True)
class Decision:
    """What all sites should do at `at`."""

    at: datetime
    sites: dict[str, SiteDecision]
    mode: Mode
    reason: str
    next_change: datetime | None
    """The next change that is certain already, e.g. the end of a start-up; None when nothing is."""
    finished: bool

    @property
    def members(self) -> tuple[str, ...]:
        """The sites that train, in the experiment's order."""
        return tuple(name for name, site in self.sites.items() if site.state == "train")


def decide(view: View, now: datetime, job: Job) -> Decision:
    """What every site should do at `now`. Pure.

    Raises:
        TraceError: `now` is at or after the end of a recorded signal: nothing is extrapolated.
        PolicyError: the policy is unknown, or its goal can't be met.
    """
    us = to_us(now)
    if us >= view.end_us:
        raise TraceError(
            f"the recorded signal ends at {iso(view.end)}; deciding at {iso(now)} would extrapolate: "
            "give a longer trace"
        )
    if job.steps_done >= job.steps_total:
        sites = {site.name: SiteDecision("off", "job finished", now) for site in view.sites}
        return Decision(now, sites, "pause", "job finished", None, finished=True)
    sites = policy_of(view).sites(view, us, job)
    for site in view.sites:
        stale = view.stale_reason(site, us)
        if stale and sites[site.name].state != "off":
            signal = view.deciding.get(site.region)
            since = now if signal is None else from_us(signal.valid_until)
            sites[site.name] = SiteDecision("off", stale, since, sites[site.name].ready)
        elif stale:
            sites[site.name] = SiteDecision("off", stale, sites[site.name].since, sites[site.name].ready)
    for name, reason in view.away.items():
        sites[name] = SiteDecision("off", reason, sites[name].since, sites[name].ready)
    if view.experiment.rounds.sync == "paying" and not policy_of(view).plans_rounds:
        _hold_back(view, sites)
    return _decision(now, sites)


def holding(decision: Decision, warm: Mapping[str, str]) -> Decision:
    """The same, but for sites that are up and held so, with why: they are warm rather than off."""
    if not warm or decision.finished:
        return decision
    sites = dict(decision.sites)
    for name, reason in warm.items():
        sites[name] = SiteDecision("warm", reason, decision.sites[name].since, decision.sites[name].ready)
    return _decision(decision.at, sites)


def _hold_back(view: View, sites: dict[str, SiteDecision]) -> None:
    """Sites that would train, but cost the others of the round more than they add, hold at idle power."""
    willing = [site for site in view.sites if sites[site.name].state == "train"]
    members = paying(view.experiment, willing) if len(willing) > 1 else willing
    since = max(site.since for site in sites.values())  # the last change of who would train
    for site in willing:
        if site not in members:
            before = sites[site.name]
            reason = f"its link would keep {', '.join(other.name for other in members)} waiting: {before.reason}"
            sites[site.name] = SiteDecision("warm", reason, since, before.ready)


def _decision(now: datetime, sites: dict[str, SiteDecision]) -> Decision:
    training = [name for name, site in sites.items() if site.state == "train"]
    starting = [
        (site.ready, name) for name, site in sites.items() if site.state == "warm" and site.ready and site.ready > now
    ]
    soonest = min(starting, default=None)
    if training:
        mode: Mode = "local" if len(training) == 1 else "federated"
        reason = (
            f"{', '.join(training)}: {sites[training[0]].reason}"
            if len(training) == 1
            else (f"{len(training)} sites train: {', '.join(training)}")
        )
    else:
        mode = "pause"
        warm = [name for name, site in sites.items() if site.state == "warm"]
        reason = f"no site trains; {', '.join(warm)} warm: {sites[warm[0]].reason}" if warm else "no site trains"
        if not warm and len({site.reason for site in sites.values()}) == 1:
            reason = f"no site trains: {next(iter(sites.values())).reason}"
    return Decision(now, sites, mode, reason, soonest[0] if soonest else None, finished=False)
