"""A segment's log as a story: who trains and why, a line per round, a sign of life in long ones, why it ended."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg

from curtail_pipeline.emissions.formats import short
from curtail_pipeline.errors import FULL_DISK, CurtailError, StoreError, is_out_of_space
from curtail_pipeline.federation.progress import (
    Resubmitted,
    RoundMerged,
    SegmentEnded,
    SegmentPlanned,
    SiteLost,
    SiteOdd,
    SiteRefused,
    StepDone,
    Submitted,
)
from curtail_pipeline.stages.run_events import Event, Progress

Log = logging.Logger | dg.DagsterLogManager

HEARTBEAT_S = 30.0
"""A round that takes longer says every so often how far its sites are."""


class Story:
    """Takes a segment's events: tells the log what is worth a line there, and passes all on to `observe`."""

    def __init__(self, log: Log, observe: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._observe, self._clock = log, observe, clock
        self._told = clock()
        self._sites: dict[str, StepDone] = {}

    def __call__(self, event: Event) -> None:
        self._tell(event)
        self._observe(event)

    def _tell(self, event: Event) -> None:
        match event:
            case SegmentPlanned():
                self._planned(event)
            case Submitted():
                self._say(f"{'goes on with' if event.again else 'submitted as'} Flower run {event.run_id}")
            case Resubmitted():
                self._warn(f"{event.reason}; another run goes on from what was merged")
            case StepDone():
                self._step(event)
            case RoundMerged():
                self._sites.clear()
                self._say(merged_line(event))
            case SiteRefused():
                self._warn(f"round {event.round}: the update of {event.site} does not count: {event.reason}")
            case SiteLost():
                self._warn(f"round {event.round}: {event.site} is lost: {event.reason}")
            case SiteOdd():
                self._warn(f"round {event.round}: {event.site}: {event.what}")
            case SegmentEnded():
                self._say(
                    f"{event.key} is committed: {event.rounds} rounds, {event.steps:,} steps, "
                    f"{short(event.tokens)} tokens; it ended because: {event.stop_reason}"
                )

    def _planned(self, event: SegmentPlanned) -> None:
        attempt = f", attempt {event.attempt}" if event.attempt > 1 else ""
        length = "until the membership changes" if event.rounds is None else f"{event.rounds} rounds"
        self._say(f"{event.key} from {event.parent}: {event.mode} training, {length}{attempt}; {event.reason}")
        for site, why in event.members.items():
            self._say(f"{site} trains" + (f": {why}" if why else ""))

    def _step(self, event: StepDone) -> None:
        self._sites[event.site] = event
        if self._clock() - self._told >= HEARTBEAT_S:
            self._say("; ".join(_where(done) for done in self._sites.values()))

    def _say(self, line: str) -> None:
        self._told = self._clock()
        self._log.info(line)

    def _warn(self, line: str) -> None:
        self._told = self._clock()
        self._log.warning(line)


def merged_line(event: RoundMerged) -> str:
    """A round: steps, speed, loss, bytes and seconds."""
    sites, steps = ", ".join(f"{site} {steps:,}" for site, steps in event.steps.items()), sum(event.steps.values())
    parts = [f"round {event.round}: {steps:,} steps ({sites or 'no site'})"]
    if event.steps and not steps:
        parts = [f"round {event.round}: what was left of the fragments ({', '.join(event.steps)})"]
    if event.tokens_per_s:
        parts.append(f"{short(event.tokens_per_s)} tokens/s")
    if event.loss is not None:
        parts.append(f"loss {event.loss:.3g} nat/token")
    if event.bytes:
        parts.append(f"{short(event.bytes)}B moved")
    moving = "" if event.moving_s is None else f" + {_seconds(event.moving_s)} moving"
    parts.append(f"{_seconds(event.training_s)} training{moving} + {_seconds(event.merging_s)} merging")
    return ", ".join(parts)


def _seconds(value: float) -> str:
    return f"{value:.0f} s" if value >= 99.95 else f"{value:.2g} s"


def _where(done: StepDone) -> str:
    parts = [f"round {done.round}: {done.site}" if done.round is not None else done.site]
    if done.step is not None:
        parts.append(f"at step {done.step:,}")
    if done.loss is not None:
        parts.append(f"loss {done.loss:.3g}")
    if done.tokens_per_s:
        parts.append(f"{short(done.tokens_per_s)} tokens/s")
    return ", ".join(parts)


@contextmanager
def plain_failure(log: Log, what: str) -> Iterator[None]:
    """Begin the log of a failure with its reason in one line; the error itself goes on."""
    try:
        yield
    except CurtailError as error:
        log.error(f"{what} failed: {first_line(error)}")
        raise
    except Exception as error:
        if not is_out_of_space(error):
            raise
        log.error(f"{what} failed: {FULL_DISK}")
        raise StoreError(f"{what} failed: {FULL_DISK}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its kind where it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
