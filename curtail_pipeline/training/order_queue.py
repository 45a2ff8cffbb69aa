"""Orders of a resident trainer, worked off one at a time: who waits, who gives way, what is answered twice.

An order nobody waits for any more goes on, since its sender may come back; another order ends it after its step and
takes its place. The same order again gets the same answer.
"""

import logging
import os
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

from curtail_pipeline.errors import CurtailError, MessageError, StoreError
from curtail_pipeline.federation.orders import Order, Result, Watch
from curtail_pipeline.federation.trainer_api import Refusal, TrainerStatus
from curtail_pipeline.scheduling.reconcile import Desired
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.trainer import SiteTrainer, StepProgress

log = logging.getLogger("curtail.trainer")

WATCH_S = 0.5
REMEMBERED = 64
"""Answers kept for orders that are sent again."""


class Refused(Exception):
    """An order that is not taken, with the HTTP status that says what kind of reason there is."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


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


def name_of(order: Order) -> str:
    return f"{order.key} attempt {order.attempt} round {order.round}"


class OrderQueue:
    """The orders of one `SiteTrainer`; `work` runs them in the thread that calls it, all else may be called anywhere.

    Args:
        trainer: does the work.
        ended: set from outside (signal, death of the parent) to end `work` after the current step.
    """

    def __init__(self, trainer: SiteTrainer, ended: threading.Event) -> None:
        self.trainer = trainer
        self.ended = ended
        self._guard = threading.Lock()
        self._jobs: dict[tuple[str, int, int], Job] = {}
        self._current: Job | None = None
        self._queue: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._progress: StepProgress | None = None

    @property
    def site(self) -> str:
        return self.trainer.site.name

    @property
    def busy(self) -> bool:
        return self._current is not None

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
            job, current = self._jobs.get(order.name), self._current
            if job is not None and job.order != order:
                raise Refused(
                    409, f"{name_of(order)} was ordered before with other content; give the new order another attempt"
                )
            if job is not None:
                return job
            if self.ended.is_set():
                raise Refused(503, self._ending)
            if current is None:
                job = self._current = self._jobs[order.name] = Job(order)
                while len(self._jobs) > REMEMBERED:
                    del self._jobs[next(iter(self._jobs))]
                self._queue.put(job)
                return job
            if current.waiting > 0:
                raise Refused(
                    409,
                    f"site {self.site} is busy with {name_of(current.order)}; POST /stop ends that, then send again",
                )
            log.info("%s gives way to %s: nobody waits for it", name_of(current.order), name_of(order))
            current.stop.set()
            return current

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
            job, done = self._current, self._progress
        return TrainerStatus(
            site=self.site,
            pid=os.getpid(),
            busy=job is not None,
            key=job.order.key if job else None,
            round=job.order.round if job else None,
            step=done.step if done else None,
            steps=done.steps if done else None,
            loss=done.loss if done else None,
            tokens_per_s=done.tokens_per_s if done else None,
        )

    def stop(self) -> Job | None:
        """Ask the running round to end after its step; the job, whose outcome can be waited for."""
        with self._guard:
            job = self._current
        if job is not None:
            job.stop.set()
        return job

    def work(self) -> None:
        """Work off orders until ended."""
        while not self.ended.is_set():
            try:
                job = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._run(job)
        with self._guard:
            if self._current is not None:  # it came while the last one was ending
                self._current.outcome.set_result(Outcome(503, Refusal(error=self._ending)))

    @property
    def _ending(self) -> str:
        return f"the trainer of site {self.site} is ending; start it and send the order again"

    def _run(self, job: Job) -> None:
        order = job.order
        try:
            with MembershipWatch(self.trainer.store, self.site, order.watch) as watch:
                result = self.trainer.train(
                    order, self._note, lambda: job.stop.is_set() or self.ended.is_set() or watch.left.is_set()
                )
            outcome = Outcome(200, result)
        except CurtailError as error:
            log.error("%s: %s", name_of(order), error)
            outcome = Outcome(400, Refusal(error=str(error)))
        except Exception as error:  # a bug: the sender gets its name, the log its traceback
            log.exception("%s failed", name_of(order))
            outcome = Outcome(500, Refusal(error=f"{type(error).__name__}: {error}"))
        with self._guard:
            if outcome.status != 200:  # a failed order may be sent again once its cause is mended
                self._jobs.pop(order.name, None)
            self._current = self._progress = None
        job.outcome.set_result(outcome)

    def _note(self, progress: StepProgress) -> None:
        with self._guard:
            self._progress = progress


class MembershipWatch:
    """Sets `left` when a newer generation of the desired membership does not have the site train."""

    def __init__(self, store: Store, site: str, watch: Watch | None) -> None:
        self.left = threading.Event()
        self._closed = threading.Event()
        self._store, self._site, self._watch = store, site, watch
        self._thread = threading.Thread(target=self._poll, name="membership", daemon=True)

    def __enter__(self) -> "MembershipWatch":
        if self._watch is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        if self._watch is not None:
            self._thread.join()

    def _poll(self) -> None:
        assert self._watch is not None
        while not self._closed.is_set():
            try:
                desired = self._store.read_record(self._watch.key, Desired)
                if desired.generation > self._watch.generation and self._site not in desired.members:
                    self.left.set()
                    return
            except StoreError as error:
                log.debug("no membership yet: %s", error)
            except MessageError as error:
                log.warning("%s; training goes on", error)
            self._closed.wait(WATCH_S)
