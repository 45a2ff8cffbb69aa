"""What a segment tells whoever watches it, as it happens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Submitted:
    """The segment is a Flower run now."""

    run_id: int


@dataclass(frozen=True)
class StepDone:
    """A site has gone on; told every 2 s at most."""

    site: str
    round: int | None
    step: int | None
    """Global number."""
    loss: float | None
    tokens_per_s: float | None


@dataclass(frozen=True)
class RoundMerged:
    round: int
    steps: Mapping[str, int]
    tokens: int
    loss: float | None
    """Of the sites' last steps, weighted by tokens."""


@dataclass(frozen=True)
class SiteRefused:
    """What a site delivered does not count."""

    site: str
    round: int
    reason: str


@dataclass(frozen=True)
class SiteLost:
    site: str
    round: int
    reason: str


SegmentEvent = Submitted | StepDone | RoundMerged | SiteRefused | SiteLost
SegmentProgress = Callable[[SegmentEvent], None]
