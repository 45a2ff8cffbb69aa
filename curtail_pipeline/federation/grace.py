"""When a round is merged without those who have not answered."""

import statistics
from collections.abc import Sequence

from pydantic import Field

from curtail_pipeline.storage.records import Record


class Quorum(Record):
    """How many updates a merge takes at least, and how long it waits for more."""

    members: int = Field(default=1, ge=1)
    """Updates without which nothing is merged; all of them where fewer are asked for."""
    grace: float | None = Field(default=None, gt=0)
    """How long the others are waited for once so many have answered, in median times that these took; None to wait
    until each has answered or is lost."""

    def least(self, asked: int) -> int:
        """Of so many members that were sent an order."""
        return min(self.members, asked)

    def waits_until(self, asked: int, times: Sequence[float]) -> float | None:
        """Seconds from the orders' sending until no answer is waited for any longer; None while all are.

        Whoever answers during the grace changes nothing about it.

        Args:
            asked: members that were sent an order.
            times: seconds that each answer took that has come.
        """
        least = self.least(asked)
        if self.grace is None or len(times) < least:
            return None
        first = sorted(times)[:least]
        return first[-1] + self.grace * statistics.median(first)
