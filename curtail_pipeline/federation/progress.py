"""What a segment tells whoever watches it, as it happens."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from curtail_pipeline.federation.orders import JournalLine


@dataclass(frozen=True)
class SegmentPlanned:
    """What is about to be trained, and why."""

    key: str
    attempt: int
    mode: str
    parent: str
    members: Mapping[str, str]
    """Each with why it trains; empty where that is not known."""
    reason: str
    rounds: int | None
    """How many there will be; None where the membership ends the segment."""


@dataclass(frozen=True)
class Submitted:
    """The segment is a Flower run now."""

    run_id: int
    again: bool = False
    """It was one already: who followed it before is gone."""


@dataclass(frozen=True)
class Resubmitted:
    """The segment's Flower run was lost; another one goes on."""

    reason: str


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
    tokens_per_s: float | None = None
    """Of all sites while they trained."""
    bytes: int = 0
    """Of weights and merged inner states, as they are coded: what the sites sent, and what they fetch of the merge."""
    training_s: float = 0.0
    """Wall seconds of the site that trained longest."""
    moving_s: float | None = None
    """Wall seconds of the round that are neither training nor merging; None where the round's are not known."""
    merging_s: float = 0.0
    """That its sites waited for: none where the next round trained meanwhile."""


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


@dataclass(frozen=True)
class SiteOdd:
    """Something is out of the ordinary at a site whose update counts."""

    site: str
    round: int
    what: str


@dataclass(frozen=True)
class SegmentEnded:
    """The segment is a committed checkpoint."""

    key: str
    stop_reason: str
    rounds: int
    steps: int
    tokens: int


SegmentEvent = (
    SegmentPlanned | SegmentEnded | Submitted | Resubmitted | StepDone | RoundMerged | SiteRefused | SiteLost | SiteOdd
)
SegmentProgress = Callable[[SegmentEvent], None]


def merged_round(line: JournalLine) -> RoundMerged:
    """What a line of the journal tells whoever watches."""
    done = line.done
    counted = [line.results[site] for site in done.tokens if site in line.results]
    tokens = sum(done.tokens.values())
    losses = [(done.tokens[site], last) for site, (_, last) in done.loss.items() if last is not None]
    training_s = max((result.seconds for result in counted), default=0.0)
    overlapped = any(order.delivered for order in line.orders.values())
    merging_s = 0.0 if overlapped else line.merge.seconds
    return RoundMerged(
        round=done.index,
        steps=done.steps,
        tokens=tokens,
        loss=sum(count * last for count, last in losses) / tokens if losses and tokens else None,
        tokens_per_s=sum(result.tokens_per_s for result in counted) or None,
        bytes=sum(_moved(line, site, overlapped) for site in line.orders if site not in done.lost),
        training_s=training_s,
        moving_s=None if line.wall_s is None else max(0.0, line.wall_s - training_s - merging_s),
        merging_s=merging_s,
    )


def _moved(line: JournalLine, site: str, overlapped: bool) -> int:
    """Bytes that one of the round's sites sent, and those of the merge that it has not had in its hands before.

    It began with what a delta is based on. Where rounds overlap its inner state stays its own.
    """
    order, result, merged, inner = line.orders[site], line.results.get(site), line.merge, line.merge.inner
    fetched, has, sent = [merged.delta or merged.weights], {order.parent.sha256}, 0
    if inner is not None and not overlapped:
        fetched.append(inner)
    if result is not None:
        has |= {result.weights.sha256, result.inner_state.end.removeprefix("sha256:")}
        sends_state = inner is not None and order.inner_out != "" and (result.steps > 0 or order.goes_on)
        sent = result.weights.bytes + (inner.bytes if inner is not None and sends_state else 0)  # as large as the mean
    return sent + sum(file.bytes for file in fetched if file.sha256 not in has)
