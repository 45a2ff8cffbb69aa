"""Sites that were lost: treated like sites whose window is closed, for longer the more often, until they deliver."""

from collections.abc import Collection, Mapping
from datetime import datetime, timedelta

from pydantic import Field

from curtail_pipeline.storage.records import Message, Record, Utc
from curtail_pipeline.times import iso

ABSENCES_KEY = "absences.json"

BACKOFF_S = (0.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0)
"""Wait after a site was lost for the n-th time in a row; the last one repeats. Most sites are back at once: whoever
watches over a trainer starts it again."""


class Absence(Record):
    """A site that was lost the last time it took part."""

    times: int = Field(ge=1)
    """In a row."""
    last: Utc
    """Wall time."""
    reason: str

    @property
    def due(self) -> datetime:
        """When it is tried again."""
        return self.last + timedelta(seconds=BACKOFF_S[min(self.times, len(BACKOFF_S)) - 1])

    def waits(self, wall: datetime) -> bool:
        """Whether that is still to come. Not where the clock was set back since: no wait grows by that."""
        return self.last <= wall < self.due


class Absences(Message):
    """`absences.json`: sites that were lost and have not delivered since."""

    sites: dict[str, Absence] = Field(default_factory=dict)

    def away(self, wall: datetime) -> dict[str, str]:
        """The sites that take no part now, with why and until when."""
        return {
            site: f"lost {found.times} times in a row ({found.reason}), tried again at {iso(found.due)}"
            for site, found in self.sites.items()
            if found.waits(wall)
        }

    def after(self, lost: Mapping[str, str], delivered: Collection[str], wall: datetime) -> "Absences":
        """Once a segment or an attempt at one has ended."""
        kept = {site: found for site, found in self.sites.items() if site not in delivered or site in lost}
        for site, reason in lost.items():
            times = kept[site].times + 1 if site in kept else 1
            kept[site] = Absence(times=times, last=wall, reason=reason)
        return Absences(sites=kept)
