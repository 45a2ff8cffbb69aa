"""Faults at a chosen moment of a run: `at(site, phase).kill()`, `stop(5)`, `delay()`, `corrupt()`, `forge("tokens")`.

A phase is told from what the product publishes (the trainers' status, `server.json`, journals), so that nothing in the
product knows that it is being disturbed.
"""

import contextlib
import os
import resource
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

import psutil

from curtail_pipeline.benchmarks.chaos_setups import Bucket, Part, Setup, Standing
from curtail_pipeline.benchmarks.lying_site import LyingSite
from curtail_pipeline.errors import FederationError, MessageError, StoreError
from curtail_pipeline.federation.answered import read_answered
from curtail_pipeline.federation.next_round import round_folder
from curtail_pipeline.federation.plan import plan_key, read_journal, segment_key
from curtail_pipeline.federation.server_life import ServerLife, life_key
from curtail_pipeline.flower.trainer_client import Trainer
from curtail_pipeline.storage.checkpoints import WEIGHTS_FILE
from curtail_pipeline.storage.store import Stamp
from curtail_pipeline.training.retention import MERGED

LOOK_S = 0.01


class Phase(StrEnum):
    """Where a site's part in a run can be."""

    PROVISIONING = "provisioning"
    FETCH = "fetch"
    TRAIN = "train"
    ENCODE = "encode"
    UPLOAD = "upload"
    REPLY = "reply"
    MERGE = "merge"
    COMMIT = "commit"
    BETWEEN_ROUNDS = "between rounds"
    BETWEEN_SEGMENTS = "between segments"


class Target(StrEnum):
    """What can be damaged."""

    UPDATE = "update"
    INNER_STATE = "inner state"
    CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Strike:
    """A fault that took place."""

    phase: Phase
    """In which it did, whatever was waited for."""
    at: float
    """Monotonic seconds."""
    hit: str
    pid: int | None = None
    """Of the process that was hit."""
    lasts_s: float = 0.0
    """Seconds for which nobody can do anything about it."""


class Injector:
    """Disturbs what runs on a set-up.

    Args:
        patience_s: how long a phase or a process is waited for; then the fault comes in whatever phase there is.
    """

    def __init__(self, setup: Setup, patience_s: float = 20.0, alive: Callable[[], bool] = lambda: True) -> None:
        self.setup, self.store = setup, setup.store
        self.patience_s, self.alive = patience_s, alive

    def at(self, site: str, phase: Phase) -> "Moment":
        """The next time that the site is in that phase."""
        return Moment(self, site, phase)

    def phase(self, site: str) -> Phase:
        """In which the site is now."""
        folder = self._folder()
        if folder is None:
            return Phase.BETWEEN_SEGMENTS if self.setup.ready() else Phase.PROVISIONING
        if self.store.exists(segment_key(folder)):
            return Phase.COMMIT
        with contextlib.suppress(StoreError, MessageError):
            if self.store.read_record(life_key(folder), ServerLife).doing == "merging":
                return Phase.MERGE
        with contextlib.suppress(StoreError, MessageError, OSError):
            merged, answered = len(read_journal(self.store, folder)), read_answered(self.store, folder)
            index = merged
            if answered is not None and answered.index >= merged:  # it is merged while the next one trains
                if site in answered.results and not self._is_written(folder, merged, site):
                    return Phase.UPLOAD
                index = answered.index + 1
            written, doing = self._is_written(folder, index, site), None
            with contextlib.suppress(FederationError, MessageError):
                doing = Trainer(self.setup.federation.endpoint(site)).status(timeout_s=0.5).phase
            if doing == "store":
                return Phase.UPLOAD if written else Phase.ENCODE
            if doing is not None:
                return Phase.FETCH if doing == "fetch" else Phase.TRAIN
            return Phase.REPLY if written else Phase.BETWEEN_ROUNDS
        return Phase.BETWEEN_ROUNDS

    def _is_written(self, folder: str, index: int, site: str) -> bool:
        """Whether the store has the site's update of a round."""
        return self.store.exists(f"{round_folder(folder, index)}/{site}.safetensors")

    def _folder(self) -> str | None:
        """Scratch folder of the segment that runs."""
        keys = [name for name in self.store.list("scratch") if name.startswith("ckpt-")]
        folders = [f"scratch/{key}/{n}" for key in keys for n in self.store.list(f"scratch/{key}")]
        return max((f for f in folders if self.store.exists(plan_key(f))), default=None)

    def newest(self, site: str, target: Target) -> str | None:
        """Key of the newest such object, where there is one now."""
        store = self.store
        if target is Target.UPDATE:
            folder = self._folder()
            rounds = [n for n in store.list(folder) if n.startswith("round-")] if folder else []
            keys = [f"{folder}/{n}/{site}.safetensors" for n in rounds]
        elif target is Target.INNER_STATE:
            keys = [f"{MERGED}/{name}" for name in store.list(MERGED)]
        else:
            names = [name for name in store.list("checkpoints") if name.startswith("ckpt-") and int(name[5:])]
            keys = [f"checkpoints/{name}/{WEIGHTS_FILE}" for name in names]
        stamps = dict(zip(keys, store.stamps(keys), strict=True))
        there = {key: stamp for key, stamp in stamps.items() if isinstance(stamp, Stamp)}
        return max(there, key=lambda key: (key.rpartition("/")[0], there[key].mtime_ns), default=None)


@dataclass(frozen=True)
class Moment:
    """A site in a phase. Every fault waits for it, and for what it is to hit; None where that did not come in time."""

    injector: Injector
    site: str
    phase: Phase

    def kill(self, part: Part = Part.TRAINER) -> Strike | None:
        """SIGKILL."""
        return self._signal(part, signal.SIGKILL)

    def stop(self, seconds: float | None, part: Part = Part.TRAINER) -> Strike | None:
        """SIGSTOP, and SIGCONT after so many seconds; never when None."""
        strike = self._signal(part, signal.SIGSTOP)
        if strike is not None and strike.pid is not None and seconds is not None:
            _later(seconds, lambda pid=strike.pid: _signal_to(pid, signal.SIGCONT))  # type: ignore[misc]
        return strike

    def delay(self, seconds: float = 2.0, part: Part = Part.TRAINER) -> Strike | None:
        """A stop that is over before anyone may call it one."""
        return self.stop(seconds, part)

    def corrupt(self, target: Target = Target.UPDATE) -> Strike | None:
        """One bit of an object flipped."""

        def flip() -> Strike | None:
            key = self.injector.newest(self.site, target)
            if key is None:
                return None
            self.injector.setup.damage(key)
            return self._now(key)

        return self._strike(flip)

    def fill(self, part: Part, seconds: float = 5.0) -> Strike | None:
        """No file of a process can grow, as if its disk were full."""

        def limit() -> Strike | None:
            pid = self.injector.setup.pid(self.site, part)
            if pid is None:
                return None
            process = psutil.Process(pid)
            before = process.rlimit(resource.RLIMIT_FSIZE)
            process.rlimit(resource.RLIMIT_FSIZE, (0, before[1]))
            _later(seconds, lambda: _unlimited(process, before))
            return self._now(f"disk of {part} {pid}", pid, lasts_s=seconds)

        return self._strike(limit)

    def forge(self, lie: str) -> Strike | None:
        """The site's next result says what is not so (`lying_site.LIES`)."""
        injector, endpoint = self.injector, self.injector.setup.federation.endpoint(self.site)

        def lying() -> Strike | None:
            if not endpoint.exists():
                return None
            liar = LyingSite(endpoint, lie, injector.store)
            deadline = time.monotonic() + 3 * injector.patience_s
            while injector.alive() and time.monotonic() < deadline and not liar.told.wait(LOOK_S):
                pass
            liar.close()
            return self._now(f"{lie} of {self.site}") if liar.told.is_set() else None

        return self._strike(lying)

    def partition(self, seconds: float | None) -> Strike | None:
        """Nothing comes through between the site and the SuperLink of a standing set-up."""

        def cut() -> Strike | None:
            setup = self.injector.setup
            assert isinstance(setup, Standing)
            setup.lines[self.site].cut(seconds)
            return self._now(f"the line of {self.site}")

        return self._strike(cut)

    def store_fault(self, what: str, seconds: float, of_site: bool = False) -> Strike | None:
        """What becomes of requests to a bucket for a while (`s3_server.Front`), all or those for the site's objects."""

        def disturb() -> Strike | None:
            setup = self.injector.setup
            assert isinstance(setup, Bucket)
            until = time.monotonic() + seconds
            words = (f"/{self.site}.", f"/{self.site}/")

            def fault(method: str, path: str) -> str | None:
                over = time.monotonic() > until or (what == "full" and method != "PUT")
                return None if over or (of_site and not any(word in path for word in words)) else what

            setup.front.fault = fault
            return self._now(f"the store: {what}", lasts_s=seconds)

        return self._strike(disturb)

    def clock_jump(self, seconds: int) -> Strike | None:
        """Every process's wall clock is off by so much from now on."""

        def jump() -> Strike | None:
            setup = self.injector.setup
            if not setup.clock.environment:
                return None
            setup.clock.jump_to(seconds)
            return self._now(f"the clock: {seconds:+d} s")

        return self._strike(jump)

    def wait(self) -> Phase | None:
        """Until it has come, or was waited for long enough: which phase it is. None once nothing runs any more."""
        strike = self._strike(lambda: self._now("nothing"))
        return strike.phase if strike else None

    def _signal(self, part: Part, number: signal.Signals) -> Strike | None:
        def hit() -> Strike | None:
            pid = self.injector.setup.pid(self.site, part)
            if pid is None:
                return None
            os.kill(pid, number)
            return self._now(f"{part} {pid}", pid)

        return self._strike(hit)

    def _now(self, hit: str, pid: int | None = None, lasts_s: float = 0.0) -> Strike:
        return Strike(self.phase, time.monotonic(), hit, pid, lasts_s)

    def _strike(self, hit: Callable[[], Strike | None]) -> Strike | None:
        deadline = time.monotonic() + self.injector.patience_s
        while self.injector.alive():
            began = time.monotonic()
            phase, late = self.injector.phase(self.site), began > deadline
            if phase == self.phase or late:
                with contextlib.suppress(OSError, psutil.Error, StoreError):  # it was gone by then
                    if (strike := hit()) is not None:
                        return Strike(phase, strike.at, strike.hit, strike.pid, strike.lasts_s)
                if late:
                    return None
            time.sleep(max(LOOK_S, time.monotonic() - began))  # looking costs what the run could use
        return None


def _later(seconds: float, do: Callable[[], None]) -> None:
    timer = threading.Timer(seconds, do)
    timer.daemon = True
    timer.start()


def _signal_to(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _unlimited(process: psutil.Process, limits: tuple[int, int]) -> None:
    with contextlib.suppress(psutil.Error):
        process.rlimit(resource.RLIMIT_FSIZE, limits)
