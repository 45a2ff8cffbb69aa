"""One segment through Flower, from the caller's side: submit, follow, fetch the outcome."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from curtail_pipeline.errors import FederationError, MessageError, SitesDown
from curtail_pipeline.federation.orders import JournalLine, Plan, Segment
from curtail_pipeline.federation.plan import folder_of, read_journal, segment_key, stop_key
from curtail_pipeline.federation.progress import (
    Resubmitted,
    SegmentEvent,
    SegmentProgress,
    SiteLost,
    SiteOdd,
    SiteRefused,
    StepDone,
    Submitted,
    merged_round,
)
from curtail_pipeline.federation.server_life import ServerFailure, ServerWatch, failure_key
from curtail_pipeline.federation.trainer_api import StopOrder
from curtail_pipeline.flower.control_api import Control, Refused, RunStatus
from curtail_pipeline.flower.local import Federation
from curtail_pipeline.flower.run_config import FlowerRun, RunConfig
from curtail_pipeline.flower.trainer_client import Trainer
from curtail_pipeline.storage.store import Store, StoreUnavailable

POLL_S = 0.25
LIFE_S = 1.0
STATUS_S = 2.0
LONGEST_PAUSE_S = 5.0
RESUBMITTED = 3
"""Runs that may be lost in a row without a round merged between them."""
_TAIL = 25

T = TypeVar("T")


class RunLost(FederationError):
    """A Flower run that ended without its doing: another one can go on behind the rounds it has merged."""


class SegmentCancelled(FederationError):
    """The caller asked to stop; nothing of the segment was committed."""


def submit_and_follow(
    federation: Federation,
    plan_key: str,
    store: Store,
    on_progress: SegmentProgress = lambda event: None,
    should_cancel: Callable[[], bool] = lambda: False,
) -> Segment:
    """Run the segment of a plan as one Flower run and return its `segment.json`.

    Called again for the same plan (the caller was killed meanwhile) it returns the outcome if there is one, else
    follows the run that goes on, else submits again. A run that is lost (its ServerApp, the SuperLink) is replaced by
    another, which goes on behind the rounds that were merged.

    Args:
        plan_key: store key of `plan.json`; everything else of the segment is written beside it.
        on_progress: called as it goes: once submitted, every 2 s per site that trains, and after every merge.
        should_cancel: asked several times a second; true ends the run.

    Raises:
        FederationError: the federation is not ready, or the run failed; the message ends with its log.
        SitesDown: none of the members is there.
        SegmentCancelled: `should_cancel` returned true.
    """
    folder = folder_of(plan_key)
    plan = store.read_record(plan_key, Plan)
    if store.exists(segment_key(folder)):
        return _outcome(store, folder)
    lost = 0
    while True:
        rounds = len(read_journal(store, folder))
        try:
            return _run_once(federation, plan_key, plan, store, on_progress, should_cancel)
        except RunLost as error:
            # what was merged is kept, and trainers go on with their orders: another run takes up where this one was
            lost = lost + 1 if len(read_journal(store, folder)) == rounds else 1
            if lost > RESUBMITTED:
                raise
            on_progress(Resubmitted(str(error)))


def _run_once(
    federation: Federation,
    plan_key: str,
    plan: Plan,
    store: Store,
    on_progress: SegmentProgress,
    should_cancel: Callable[[], bool],
) -> Segment:
    """Follow the plan's run that goes on, or a new one, to its end."""
    folder = folder_of(plan_key)
    contact = federation.wait_ready(plan.members)
    with Control(contact.superlink, contact.authority) as control:
        run_id = _patiently(federation, lambda: _attach(control, store, plan_key))
        again = run_id is not None
        if run_id is None:
            config = RunConfig(store=store.uri, plan=plan_key, nodes=contact.nodes, limits=federation.limits)
            for left in (failure_key(folder), stop_key(folder)):
                store.delete(left)
            run_id = _patiently(federation, lambda: _start(control, store, plan_key, config))
        store.write_record(f"{folder}/flower.json", FlowerRun(run_id=run_id, superlink=contact.superlink))
        on_progress(Submitted(run_id, again))
        follower = _Follower(federation, control, store, folder, run_id, plan, on_progress, should_cancel)
        try:
            return follower.follow()
        except RunLost:
            raise
        except FederationError:
            follower.stop_sites()
            raise
        except BaseException:  # an orchestrator's interrupt is no Exception, and the sites would train on
            follower.cancel()
            raise


def _patiently(federation: Federation, call: Callable[[], T], wait: Callable[[float], None] = time.sleep) -> T:
    """The result of a call to a SuperLink that may be starting again; its error where none answers for too long."""
    deadline, pause = time.monotonic() + federation.start_timeout_s, POLL_S
    while True:
        try:
            return call()
        except FederationError as error:
            if isinstance(error, Refused) or federation.is_down() or time.monotonic() + pause > deadline:
                raise
            wait(pause)
            pause = min(2 * pause, LONGEST_PAUSE_S)


def _attach(control: Control, store: Store, plan_key: str) -> int | None:
    """The run that is working on this plan, if there is one.

    The SuperLink is asked, not `flower.json`: the caller may have been killed between submitting and writing it.
    """
    for run_id, run in sorted(control.runs().items(), reverse=True):
        if run.config.get("plan") == plan_key and run.config.get("store") == store.uri and not run.finished:
            return run_id
    return None


def _start(control: Control, store: Store, plan_key: str, config: RunConfig) -> int:
    """A run of the plan. Where an earlier try began one and its answer got lost it is that: two would merge at once."""
    begun = _attach(control, store, plan_key)
    return control.start_run(config.to_flower()) if begun is None else begun


class _Follower:
    def __init__(
        self,
        federation: Federation,
        control: Control,
        store: Store,
        folder: str,
        run_id: int,
        plan: Plan,
        on_progress: SegmentProgress,
        should_cancel: Callable[[], bool],
    ) -> None:
        self.federation, self.control, self.store, self.folder = federation, control, store, folder
        self.run_id, self.plan = run_id, plan
        self.on_progress, self.should_cancel = on_progress, should_cancel
        self.watch = ServerWatch(store, folder, federation.limits, federation.start_timeout_s)
        self.seen_rounds = 0
        self.seen_steps: dict[str, StepDone] = {}

    def follow(self) -> Segment:
        asked = looked = 0.0
        while True:
            if self.should_cancel():
                self.control.stop_run(self.run_id)
                raise SegmentCancelled(f"{self.folder}: cancelled while Flower run {self.run_id} was going on")
            # the ServerApp writes the outcome last; Flower takes another second to call the run finished
            over = self.store.exists(segment_key(self.folder))
            for event in self.round_events():
                self.on_progress(event)
            if over:
                return _outcome(self.store, self.folder)
            if time.monotonic() - asked > STATUS_S:
                asked = time.monotonic()
                run = _patiently(self.federation, lambda: self.control.status(self.run_id))
                self.check(run)
                for event in self.step_events():
                    self.on_progress(event)
            if time.monotonic() - looked > LIFE_S:
                looked = time.monotonic()
                self.require_life()
            time.sleep(POLL_S)

    def check(self, run: RunStatus | None) -> None:
        """Raise when the run has ended without an outcome."""
        if run is not None and (not run.finished or self.store.exists(segment_key(self.folder))):
            return
        if run is None:
            raise RunLost(f"{self.folder}: the SuperLink no longer knows run {self.run_id}; it was restarted")
        try:
            log = self.control.logs(self.run_id)
        except FederationError as error:
            log = str(error)
        ending = "\n".join(log.splitlines()[-_TAIL:])
        why = f"{run.sub_status}: {run.details or 'no details'}"
        said = f"{self.folder}: Flower run {self.run_id} {why}; its log ends:\n{ending}"
        if not self.store.exists(failure_key(self.folder)):
            raise RunLost(said)  # it was killed, with the SuperLink it hung on, say
        failure = self.store.read_record(failure_key(self.folder), ServerFailure)
        raise SitesDown(said, failure.sites) if failure.sites else FederationError(said)

    def require_life(self) -> None:
        """End a run whose ServerApp is dead, stopped or never started: its site waits would last for ever."""
        if (reason := self.watch.lost()) is None:
            return
        with contextlib.suppress(FederationError):
            self.control.stop_run(self.run_id)
        raise RunLost(f"{self.folder}: Flower run {self.run_id} was stopped: its ServerApp is lost: {reason}")

    def round_events(self) -> Iterator[SegmentEvent]:
        for line in read_journal(self.store, self.folder, self.seen_rounds):
            self.seen_rounds += 1
            yield from events_of(line)

    def step_events(self) -> Iterator[StepDone]:
        """Of this segment's own orders: a trainer may be at another one's."""
        for site in self.plan.members:
            with contextlib.suppress(FederationError, MessageError):
                status = Trainer(self.federation.endpoint(site)).status(timeout_s=1.0)
                event = StepDone(site, status.round, status.step, status.loss, status.tokens_per_s)
                mine = status.works_on(self.plan.key, self.plan.attempt, self.plan.replay)
                if mine and event != self.seen_steps.get(site):
                    self.seen_steps[site] = event
                    yield event

    def cancel(self) -> None:
        """End the run and have its members finish their current step."""
        self.stop_sites()
        with contextlib.suppress(FederationError):
            self.control.stop_run(self.run_id)

    def stop_sites(self) -> None:
        """Have the members finish their current step: stopping a Flower run does not reach them.

        Those of this machine are told at once, all others find it in the store.
        """
        mine = StopOrder(key=self.plan.key, attempt=self.plan.attempt, replay=self.plan.replay)
        with contextlib.suppress(StoreUnavailable):
            self.store.write_record(stop_key(self.folder), mine)
        for site in self.plan.members:
            with contextlib.suppress(FederationError, MessageError):
                Trainer(self.federation.endpoint(site)).stop(mine, timeout_s=30.0)


def events_of(line: JournalLine) -> Iterator[SegmentEvent]:
    """What a merged round tells."""
    done = line.done
    yield merged_round(line)
    yield from (SiteRefused(site, done.index, reason) for site, reason in done.refused.items())
    yield from (SiteOdd(site, done.index, what) for site, what in done.odd.items())
    yield from (SiteLost(site, done.index, reason) for site, reason in done.lost.items())


def _outcome(store: Store, folder: str) -> Segment:
    segment = store.read_record(segment_key(folder), Segment)
    if not store.exists(segment.weights.key):
        raise FederationError(f"{folder}: {segment.weights.key} is gone; run the segment as another attempt")
    return segment
