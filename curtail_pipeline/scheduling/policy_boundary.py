"""Policy `boundary`: stops at the window's edge, waits out short spikes at idle power, starts only when it pays."""

from typing import ClassVar

import numpy as np
from pydantic import Field

from curtail_pipeline.scheduling.policies import (
    Parameters,
    TimelinePolicy,
    lost_at_start_us,
    noticed_windows,
    start_up_us,
)
from curtail_pipeline.scheduling.timeline import Timeline
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.times import FOREVER, SECOND, duration_us
from curtail_pipeline.windows.candidates import history_waits


class BoundaryParameters(Parameters):
    """Of the policy `boundary`."""

    hold_s: float | None = Field(default=None, ge=0)
    """How long a site stays up, at idle power, after its window closed. When not given, as long as its start-up takes:
    waiting that long costs at most about what a needless restart would. A hold shorter than the signal's cadence cannot
    outlast any spike and is not tried."""
    pay_factor: float = Field(default=2.0, ge=0)
    """A site is started when its window is expected to last at least this many start-ups."""


class BoundaryPolicy(TimelinePolicy):
    """Windows of the plain threshold rule, with hold instead of exit delay.

    What a window is expected to last comes from the site's last windows: at least half of those that lasted as long as
    this one has so far must have lasted long enough beyond. A window that looks too short at first is taken up later,
    when it has outlived the short ones.
    """

    name = "boundary"
    parameters: ClassVar[type[Parameters]] = BoundaryParameters
    settings: BoundaryParameters

    def timeline(self, view: View, site: Site) -> Timeline:
        windows = noticed_windows(view, site)
        start, end = windows.start, windows.end
        overheads = view.experiment.overheads_of(site)
        hold = self._hold_us(view, site)
        durations = np.where(end >= FOREVER, FOREVER, end - start)
        required = round(self.settings.pay_factor * lost_at_start_us(overheads))
        if required:
            waits, _ = history_waits(durations, np.array([0, len(start)]), [[]], required)
        else:
            waits = np.zeros(len(start), dtype=np.int64)
        opens = start + waits
        pays = opens < end
        # Window k follows the one before it without a stop when that was in use and the gap is within the hold.
        follows = np.zeros(len(start), dtype=bool)
        follows[1:] = start[1:] - end[:-1] < hold
        index = np.arange(len(start))
        chain = np.maximum.accumulate(np.where(follows, 0, index))
        first_used = np.maximum.accumulate(np.where(pays, index, -1))
        used = first_used >= chain
        continues = follows & np.concatenate(([False], used[:-1]))
        begins = np.flatnonzero(used & ~continues)
        used_at = np.flatnonzero(used)
        # The last used window of each stretch is the one before the next stretch begins.
        last = used_at[np.searchsorted(used_at, begins[1:]) - 1] if len(begins) else used_at
        last = np.append(last, used_at[-1:]) if len(begins) else last
        up = opens[begins]
        down = np.minimum(end[last] + hold, FOREVER)
        ready = up + start_up_us(overheads)
        stretch = np.searchsorted(begins, used_at, side="right") - 1
        train = np.maximum(np.where(continues[used_at], start[used_at], opens[used_at]), ready[stretch])
        until = end[used_at]
        some = train < until
        waited = f"; not back within {hold / SECOND:g} s" if hold else ""
        return Timeline(
            up,
            ready,
            down,
            train[some],
            until[some],
            [windows.opened_by[k] for k in begins],
            [windows.closed_by[k] and windows.closed_by[k] + waited for k in last],
        )

    def _hold_us(self, view: View, site: Site) -> int:
        given = self.settings.hold_s
        hold = lost_at_start_us(view.experiment.overheads_of(site)) if given is None else duration_us(given)
        cadence = view.cadence_us(site.region)
        return 0 if given is None and cadence is not None and hold < cadence else hold
