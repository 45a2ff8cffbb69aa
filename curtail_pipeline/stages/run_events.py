"""What a run tells whoever watches it: preparation, pauses and segments, and what `federation` tells within one."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from curtail_pipeline.federation.progress import SegmentEvent
from curtail_pipeline.storage.manifest import Manifest


@dataclass(frozen=True)
class Preparing:
    what: str


@dataclass(frozen=True)
class Incomplete:
    """Something could not be prepared; the run goes on without it."""

    error: str


@dataclass(frozen=True)
class Paused:
    """No site trains in `[start, end)`."""

    start: datetime
    end: datetime
    reason: str


@dataclass(frozen=True)
class SegmentStarted:
    key: str
    start: datetime
    members: tuple[str, ...]
    mode: str
    rounds: int


@dataclass(frozen=True)
class AttemptFailed:
    key: str
    attempt: int
    error: str


@dataclass(frozen=True)
class Committed:
    manifest: Manifest


Event = Preparing | Incomplete | Paused | SegmentStarted | AttemptFailed | Committed | SegmentEvent
Progress = Callable[[Event], None]
