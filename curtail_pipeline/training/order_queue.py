"""Orders of a resident trainer, worked off one at a time: who waits, who gives way, what is answered twice.

*Live* orders come first. One that nobody waits for any more goes on, since its sender may come back; another live order
ends it after its step and takes its place. *Replays* get the time that live orders leave: they queue, and one that is
being worked on gives way after its step and is begun again later; one that nobody has asked for in a while is dropped.
The same order again gets the same answer, as long as the weights that the answer names are there.
"""

import logging
import os
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from curtail_pipeline.errors import FULL_DISK, CurtailError, is_out_of_space
from curtail_pipeline.federation.orders import Activity, Order, Phase, Result
from curtail_pipeline.federation.trainer_api import Refusal, StopOrder, TrainerStatus
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.order_watch import OrderWatch
from curtail_pipeline.training.step_progress import StepProgress
from curtail_pipeline.training.trains import Trains

log = logging.getLogger("curtail.trainer")

REMEMBERED = 64
"""Answers kept for orders that are sent again."""
STEPS_REMEMBERED = 21
"""Whose median says how long a step may take."""
FORGOTTEN_S = 30.0
"""A replay's order that nobody has asked for in so long is dropped."""


class Refused(Exception):
    """An order that is not taken, with the HTTP status that says what kind of reason there is."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _GaveWay(Exception):
    """A replay's order left the trainer before its result was stored."""


@dataclass(frozen=True)
class Outcome:
    """What an order came to: its result (200), or why there is none."""

    status: int
    answer: Result | Refusal


@dataclass
class Job:
    order: Order
    outcome: "Future[Outcome]" = field(default_factory=Future)
    stop: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0
    """Senders that still wait for the answer."""
    asked: float = 0.0
    """When it was last sent, on the queue's clock."""


def name_of(order: Order) -> str:
    what = f"replay {order.replay} of {order.key}" if order.replay else f"{order.key} attempt {order.attempt}"
    return f"{what} round {order.round}"


def _work_of(order: Order) -> Order:
    """Without what a server that takes over a round says anew: its signatures, and the membership as it now stands."""
    return order.model_copy(update={"links": None, "watch": None})


class OrderQueue:
    """The orders of one trainer; `work` runs them in the thread that calls it, all else may be called anywhere.

    Args:
        trainer: does the work.
        store: the site's own, which says what ends an order that brings no addresses.
        ended: set from outside (signal, death of the parent) to end `work` after the current step.
        clock: monotonic seconds.
        on_step: called after every step, in the training thread.
    """

    def __init__(
        self,
        trainer: Trains,
        store: Store,
        ended: threading.Event,
        clock: Callable[[], float] = time.monotonic,
        on_step: Callable[[Order, StepProgress], None] | None = None,
    ) -> None:
        self.trainer, self._store = trainer, store
        self.ended = ended
        self._clock, self._on_step = clock, on_step
        self._guard = threading.Lock()
        self._came = threading.Condition(self._guard)
        self._jobs: dict[tuple[str, int, str, int], Job] = {}
        self._live: Job | None = None
        """The live order that is worked on or comes next."""
        self._replays: deque[Job] = deque()
        self._current: Job | None = None
        self._progress: StepProgress | None = None
        self._links: Links | None = None
        self._activity: Activity | None = None
        self._step_s: deque[float] = deque(maxlen=STEPS_REMEMBERED)
        self._told = 0.0
        """When the training thread last told of a step or a phase."""

    @property
    def site(self) -> str:
        return self.trainer.name

    @property
    def activity(self) -> Activity | None:
        """What the training thread does; None while there is nothing to do."""
        with self._guard:
            job, activity = self._current, self._activity
            if job is None or activity is None or job.order.replay:
                return activity
            return activity.model_copy(update={"waited_for": job.waiting > 0})

    @property
    def links(self) -> Links | None:
        """Those of the last order that brought some."""
        return self._links

    def enter(self, order: Order) -> Job:
        """The job of this order, known or new; or that of an abandoned one which has to make room first.

        Wait for the `outcome` of a job with another order, then enter again.

        Raises:
            Refused: the order is another site's (400), differs from an earlier one of its name or comes while another
                is waited for (409), or the trainer is ending (503).
        """
        if order.site != self.site:
            raise Refused(400, f"the order is for site {order.site!r}, this is {self.site!r}'s trainer; send it there")
        with self._guard:
            self._links = order.links or self._links
            job = self._known(order)
            if job is not None:
                job.asked = self._clock()
                return job
            if self.ended.is_set():
                raise Refused(503, self._ending)
            if order.replay:
                job = self._take(order)
                self._replays.append(job)
                return job
            busy = self._live
            if busy is None:
                job = self._live = self._take(order)
                return job
            if busy.waiting > 0:
                raise Refused(
                    409,
                    f"site {self.site} is busy with {name_of(busy.order)}; POST /stop ends that, then send again",
                )
            log.info("%s gives way to %s: nobody waits for it", name_of(busy.order), name_of(order))
            busy.stop.set()
            return busy

    def _known(self, order: Order) -> Job | None:
        job = self._jobs.get(order.name)
        if job is None:
            return None
        if _work_of(job.order) != _work_of(order):
            raise Refused(
                409, f"{name_of(order)} was ordered before with other content; give the new order another attempt"
            )
        answer = job.outcome.result().answer if job.outcome.done() else None
        if isinstance(answer, Result) and not self.trainer.has(answer.weights.key):
            log.info("%s comes again and its weights are gone: it is done again", name_of(order))
            return None
        return job

    def _take(self, order: Order) -> Job:
        job = self._jobs[order.name] = Job(order, asked=self._clock())
        answered = [name for name, known in self._jobs.items() if known.outcome.done()]
        for name in answered[:-REMEMBERED]:
            del self._jobs[name]
        self._came.notify()
        return job

    def runs(self, job: Job) -> bool:
        """Whether it is worked on now."""
        return self._current is job

    @contextmanager
    def waited_for(self, job: Job) -> Iterator[None]:
        """Held while a sender waits for the answer."""
        with self._guard:
            job.waiting += 1
        try:
            yield
        finally:
            with self._guard:
                job.waiting -= 1

    def status(self) -> TrainerStatus:
        with self._guard:
            job, done, activity = self._current, self._progress, self._activity
        return TrainerStatus(
            site=self.site,
            pid=os.getpid(),
            busy=job is not None,
            key=job.order.key if job else None,
            attempt=job.order.attempt if job else None,
            replay=job.order.replay if job else None,
            round=job.order.round if job else None,
            step=done.step if done else None,
            steps=done.steps if done else None,
            loss=done.loss if done else None,
            tokens_per_s=done.tokens_per_s if done else None,
            phase=activity.phase if activity else None,
        )

    def stop(self, wanted: StopOrder) -> Job | None:
        """Ask an order to end after its step; the job, whose outcome can be waited for. None where there is none."""
        with self._guard:
            jobs = [job for job in (self._live, self._current, *self._replays) if job is not None]
            for job in jobs:
                order = job.order
                same = (order.key, order.attempt, order.replay) == (wanted.key, wanted.attempt, wanted.replay)
                if same and wanted.round in (None, order.round):
                    job.stop.set()
                    if job in self._replays:
                        self._replays.remove(job)
                        self._drop(job, "it was stopped")
                    return job
        return None

    def stop_all(self) -> Job | None:
        """Ask whatever is worked on to end after its step, as `stop` does."""
        with self._guard:
            job = self._current
            if job is not None:
                job.stop.set()
            return job

    def work(self) -> None:
        """Work off orders until ended."""
        while not self.ended.is_set():
            with self._guard:
                job = self._current = self._next()
                if job is None:
                    self._came.wait(0.2)
            if job is not None:
                self._run(job)
        with self._guard:
            for job in (self._live, *self._replays):  # they came while the last one was ending
                if job is not None:
                    job.outcome.set_result(Outcome(503, Refusal(error=self._ending)))

    def _next(self) -> Job | None:
        if self._live is not None:
            return self._live
        while self._replays:
            job = self._replays.popleft()
            if not self._forgotten(job):
                return job
            self._drop(job, "nobody has asked for it any more")
        return None

    def _forgotten(self, job: Job) -> bool:
        return self._clock() - job.asked > FORGOTTEN_S

    def _drop(self, job: Job, why: str) -> None:
        log.info("%s is dropped: %s", name_of(job.order), why)
        self._jobs.pop(job.order.name, None)
        job.outcome.set_result(Outcome(409, Refusal(error=f"{name_of(job.order)} was dropped: {why}; send it again")))

    @property
    def _ending(self) -> str:
        return f"the trainer of site {self.site} is ending; start it and send the order again"

    def _run(self, job: Job) -> None:
        order = job.order
        try:
            with OrderWatch(self._store, self.site, order) as watch:
                result = self.trainer.train(
                    order,
                    lambda told: self._note(order, told),
                    lambda: self._gives_way(job) or job.stop.is_set() or self.ended.is_set() or watch.left.is_set(),
                    lambda phase: self._note(order, phase),
                )
            outcome = Outcome(200, result)
        except _GaveWay:
            return
        except CurtailError as error:
            log.error("%s: %s", name_of(order), error)
            outcome = Outcome(400, Refusal(error=str(error)))
        except Exception as error:
            outcome = self._failed(order, error)
        with self._guard:
            if outcome.status != 200:  # a failed order may be sent again once its cause is mended
                self._jobs.pop(order.name, None)
            self._current = self._progress = self._activity = None
            if self._live is job:
                self._live = None
        job.outcome.set_result(outcome)

    def _failed(self, order: Order, error: Exception) -> Outcome:
        if is_out_of_space(error):
            log.error("%s: %s", name_of(order), FULL_DISK)
            return Outcome(507, Refusal(error=f"site {self.site} has {FULL_DISK}"))
        # a bug: the sender gets its name, the log its traceback
        log.error("%s failed", name_of(order), exc_info=error)
        return Outcome(500, Refusal(error=f"{type(error).__name__}: {error}"))

    def _gives_way(self, job: Job) -> bool:
        """Of a replay's order, before every step: leave the trainer to a live one, or because nobody wants it.

        What it has done is thrown away: an order's result depends on the order alone, so that it is the same later.
        """
        if not job.order.replay:
            return False
        with self._guard:
            if self._live is not None:
                log.info("%s gives way to %s and is begun again later", name_of(job.order), name_of(self._live.order))
                self._replays.appendleft(job)
            elif job.stop.is_set() or self._forgotten(job):
                self._drop(job, "it was stopped" if job.stop.is_set() else "nobody has asked for it any more")
            else:
                return False
            self._current = self._progress = self._activity = None
        raise _GaveWay

    def _note(self, order: Order, told: StepProgress | Phase) -> None:
        """Keep what the training thread tells, for whoever watches over it."""
        if self._on_step is not None and isinstance(told, StepProgress):
            self._on_step(order, told)
        now = self._clock()
        with self._guard:
            before, phase = self._activity, self._activity.phase if self._activity else "fetch"
            if isinstance(told, StepProgress):
                self._progress = told
                if phase == "train":
                    self._step_s.append(now - self._told)
                phase = "train"
            else:
                phase = told
            self._told = now
            self._activity = Activity(
                **order.model_dump(include={"key", "attempt", "replay", "round"}),
                phase=phase,
                count=before.count + 1 if before else 1,
                step_s=statistics.median(self._step_s) if self._step_s else None,
            )
