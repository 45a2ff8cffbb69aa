"""Which sites should be up: those that are to train, and those whose window is expected to open by the time they are.

`warm` is a site that is up and has no order; `off` is one that is stopped, or on its way up. What was really started
stands in `provisioning/<site>.json`, by whoever starts it.
"""

import statistics
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Final, Literal

from pydantic import Field

from curtail_pipeline.scheduling.absence import Absence
from curtail_pipeline.scheduling.decide import Decision
from curtail_pipeline.scheduling.policies import TimelinePolicy, policy_of
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.records import Message, Record, Utc
from curtail_pipeline.times import DAY, duration_us, from_us, iso, to_us

WANTS_KEY = "provisioning.json"
REMEMBERED: Final = 5
"""Starts whose median says how long the next one takes."""
LATE_S: Final = 900.0
"""How much later than expected a window may open and still find the site up: three 5-minute values."""

Phase = Literal["off", "starting", "up", "stopping"]


class Provisioned(Message):
    """`provisioning/<site>.json`: what a site was brought to."""

    phase: Phase = "off"
    since: Utc | None = None
    """Wall time."""
    start_s: tuple[float, ...] = ()
    """Wall seconds that the last starts took, until the site was connected; newest last."""
    failed: Absence | None = None
    """Its start or stop failed, the last time it was tried."""

    @property
    def start_up_s(self) -> float | None:
        """How long a start takes; None before the first one."""
        return statistics.median(self.start_s) if self.start_s else None


class Want(Record):
    up: bool
    reason: str = ""


class Wants(Message):
    """`provisioning.json`: what is wanted of each site with a provisioner."""

    sites: dict[str, Want] = Field(default_factory=dict)


def provisioned_key(site: str) -> str:
    return f"provisioning/{site}.json"


def managed(sites: Collection[Site]) -> list[Site]:
    """Those that are started and stopped from here."""
    return [site for site in sites if site.provisioner.kind != "none"]


def wanted(
    view: View,
    decision: Decision,
    known: Mapping[str, Provisioned],
    active: Collection[str],
    speed: float = 1.0,
) -> Wants:
    """What is wanted of the sites that are known here.

    Args:
        decision: what sites should do, were all of them up.
        known: what each was brought to.
        active: members of the segment that trains; they finish their round.
        speed: seconds of the clock in one of wall time.
    """
    ahead = isinstance(policy_of(view), TimelinePolicy)  # others say themselves when a site should be up
    found = {}
    for site in view.sites:
        if site.name not in known:
            continue
        own = decision.sites[site.name]
        if own.state != "off":
            found[site.name] = Want(up=True, reason=own.reason)
        elif site.name in active:
            found[site.name] = Want(up=True, reason="its segment is ending")
        elif ahead and not decision.finished and (at := _expected(view, site, decision.at, known[site.name], speed)):
            found[site.name] = Want(up=True, reason=f"its window is expected to open at {iso(at)}, as a day before")
        else:
            found[site.name] = Want(up=False, reason=own.reason)
    return Wants(sites=found)


def _expected(view: View, site: Site, now: datetime, known: Provisioned, speed: float) -> datetime | None:
    """The opening of the window that the site has to be started for now: of a window of the last day, a day later."""
    overheads = view.experiment.overheads_of(site)
    measured = known.start_up_s
    lead_s = measured * speed if measured is not None else overheads.provisioning_s + overheads.connect_s
    us = to_us(now)
    opened, late = view.windows[site.name].start, duration_us(LATE_S)
    expected = opened + DAY
    due = expected[(expected > us - late) & (expected <= us + duration_us(lead_s))]
    due = due[due - opened.max(initial=-DAY) > late]  # it has not come yet
    return from_us(int(due.min())) if len(due) else None


def not_up(wants: Wants, known: Mapping[str, Provisioned], wall: datetime) -> dict[str, str]:
    """Sites that take no part because they are not up, and why."""
    found = {}
    for name, site in known.items():
        if site.phase == "up" or not wants.sites[name].up:
            continue
        failed = site.failed
        if failed is not None and failed.waits(wall):
            found[name] = (
                f"its start failed {failed.times} times in a row ({failed.reason}), tried again at {iso(failed.due)}"
            )
        else:
            usual = f", which takes {site.start_up_s:.0f} s" if site.start_up_s is not None else ""
            found[name] = f"it is being started{usual}"
    return found


def held(wants: Wants, known: Mapping[str, Provisioned], decision: Decision) -> dict[str, str]:
    """Sites that are up without being told to train, and why: they are warm."""
    return {
        name: wants.sites[name].reason
        for name, site in known.items()
        if site.phase == "up" and wants.sites[name].up and decision.sites[name].state == "off"
    }
