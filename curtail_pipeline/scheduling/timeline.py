"""When a site is provisioned and when it trains, as policies that need no knowledge of the job give it."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from curtail_pipeline.times import FOREVER, Micros


@dataclass(frozen=True)
class Timeline:
    """When one site is provisioned and when it trains, as a policy that needs no knowledge of the job gives it.

    Stretch i: start-up begins at `up[i]`, may train from `ready[i]` (possibly after `down[i]`: the window was too
    short), is told to stop at `down[i]`. Training stretches `[train[j], until[j])` lie inside `[ready, down)`.
    All arrays ascend and stretches do not overlap.
    """

    up: Micros
    ready: Micros
    down: Micros
    train: Micros
    until: Micros
    opened: list[str]
    """Why each stretch began."""
    closed: list[str]
    """Why each stretch ended; empty while it is open."""

    def clipped(self, start: int, start_up: int) -> "Timeline":
        """The same timeline for a job that starts at `start`: a site that would be up by then starts up only now."""
        kept = self.down > start
        if not len(self.up) or (kept.all() and self.up[0] >= start):
            return self
        up = np.maximum(self.up[kept], start)
        ready = np.where(self.up[kept] < start, np.maximum(up + start_up, self.ready[kept]), self.ready[kept])
        stretch = np.maximum(np.searchsorted(up, self.until, side="left") - 1, 0)
        train = np.maximum(self.train, ready[stretch]) if len(up) else self.train
        some = (train < self.until) & (self.until > start)
        return Timeline(
            up,
            ready,
            self.down[kept],
            train[some],
            self.until[some],
            [text for text, keep in zip(self.opened, kept, strict=True) if keep],
            [text for text, keep in zip(self.closed, kept, strict=True) if keep],
        )

    @cached_property
    def events(self) -> Micros:
        """Every instant at which the state changes, ascending."""
        ready = self.ready[self.ready < self.down]
        stamps = np.unique(np.concatenate((self.up, ready, self.down, self.train, self.until)))
        return stamps[stamps < FOREVER]
