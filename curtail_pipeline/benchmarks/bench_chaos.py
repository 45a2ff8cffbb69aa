"""Random faults in local, standing and S3 set-ups, and whether runs come out as if there had been none.

A small experiment of three sites is run to the end of its budget, once undisturbed and then again and again while
processes are killed and stopped, lines cut, files damaged, results forged and clocks set, one fault at a time, each as
soon as the one before is overcome. Faults are drawn evenly over set-ups, kinds and phases from the seed.
"""

import contextlib
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from curtail_pipeline.benchmarks.chaos_checks import lineage_of, listening_below, listening_for, orphans
from curtail_pipeline.benchmarks.chaos_experiment import CURTAILED, NAME, SEQUENCE, STEPS, write_experiment
from curtail_pipeline.benchmarks.chaos_faults import RUN_KILLED, STOP_RUN, kinds_of
from curtail_pipeline.benchmarks.chaos_setups import SETUPS, Setup
from curtail_pipeline.benchmarks.fault_injector import Injector, Phase, Strike
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.federation.plan import journal_key
from curtail_pipeline.flower.hangs import is_stopped
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.commits import manifest_key
from curtail_pipeline.storage.records import Json
from curtail_pipeline.storage.store import NotStored

T = TypeVar("T")

AT_MOST_S = 150.0
"""After which a fault counts as not overcome."""
EPISODE_S = 600.0
PATIENCE_S = 6.0
"""How long a phase is waited for: some last milliseconds here, and some do not come again."""


@dataclass
class Tally:
    """What has been seen so far."""

    strikes: list[tuple[str, str, Strike, float | None]] = field(default_factory=list)
    """Set-up, kind, fault, and seconds until it was overcome; None where it was not."""
    problems: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    repaired: int = 0
    """Runs after which a damaged file was made again with `curtail checkpoints repair`."""
    finished: bool = True
    ledger_exact: bool = True
    commits_valid: bool = True
    orphans: int = 0
    ports: int = 0


class Even(Generic[T]):
    """Draws what was drawn least, by chance among equals."""

    def __init__(self, choices: Sequence[T], chance: random.Random) -> None:
        self._choices, self._chance = choices, chance
        self.counts: Counter[T] = Counter()

    def draw(self, among: Callable[[T], bool] = lambda _: True) -> T:
        """Count it with `counts` once it has come to something."""
        possible = [choice for choice in self._choices if among(choice)]
        least = min(self.counts[choice] for choice in possible)
        return self._chance.choice([choice for choice in possible if self.counts[choice] == least])


def run(
    faults: int = 10,
    seed: int = 0,
    per_run: int = 5,
    setups: str = ",".join(SETUPS),
    keep: str = "",
    faultfree: float | None = None,
    minutes: float = math.inf,
    only: str = "",
    steps: int = STEPS,
    overlap: bool = False,
    fragments: int = 1,
) -> Mapping[str, object]:
    """Disturb runs until so many faults took place; figures as in the module's text, times in wall seconds.

    Args:
        per_run: faults in one run at most; then it is left to finish, and the next one begins in the next set-up.
        setups: which, separated by commas.
        keep: a folder to work in, left as it is.
        faultfree: held-out loss of the undisturbed run where it is known, which then is not run again.
        minutes: no further fault after so many; the run that is on its way is finished.
        only: kinds with one of these words in their names, separated by commas.
        steps: of the job; with more of them a run has time for more faults.
        overlap: whether a round trains while the one before it is merged.
        fragments: of the weights, one of which is exchanged with each round.
    """
    until = time.monotonic() + 60 * minutes
    names = setups.split(",")
    if unknown := [name for name in names if name not in SETUPS]:
        raise SettingsError(f"no set-up {unknown[0]!r}; there are {', '.join(SETUPS)}")
    chance, tally = random.Random(seed), Tally()
    kinds = {name: Even(_wanted([*kinds_of(name), RUN_KILLED, STOP_RUN], only), chance) for name in names}
    phases = Even([*Phase], chance)
    per_run = min(per_run, -(-faults // len(names)))
    with contextlib.ExitStack() as held:
        folder = Path(keep or held.enter_context(tempfile.TemporaryDirectory(prefix="bench-chaos-")))
        if faultfree is None:
            with Episode(folder / "undisturbed", "local", steps, overlap=overlap, fragments=fragments) as undisturbed:
                undisturbed.finish(tally)
            (faultfree,) = tally.losses or [float("nan")]
            tally.losses.clear()
        number = 0
        while len(tally.strikes) < faults and number < faults and time.monotonic() < until:
            setup = names[number % len(names)]
            number += 1
            with Episode(folder / f"run-{number}", setup, steps, overlap=overlap, fragments=fragments) as episode:
                wanted = min(len(tally.strikes) + per_run, faults)
                while episode.running() and len(tally.strikes) < wanted and time.monotonic() < until:
                    begun = bool(episode.faults)
                    phase = phases.draw(lambda phase: not begun or phase is not Phase.PROVISIONING)  # noqa: B023
                    kind = kinds[setup].draw()
                    kinds[setup].counts[kind] += 1
                    if strike := episode.disturb(kind, phase, chance.choice([*CURTAILED]), tally):
                        phases.counts[strike.phase] += 1
                episode.finish(tally)
    return _figures(tally, seed, faultfree)


def _wanted(kinds: Sequence[str], only: str) -> Sequence[str]:
    """
    Raises:
        SettingsError: none is.
    """
    wanted = [kind for kind in kinds if any(word in kind for word in only.split(","))]
    if not wanted:
        raise SettingsError(f"no kind of fault has {only!r} in its name; there are {', '.join(kinds)}")
    return wanted


class Episode:
    """One run of the experiment in a home of its own.

    Args:
        steps: the job's.
        patience_s: how long a phase is waited for.
        overlap: whether its rounds do.
        fragments: of its weights.
    """

    def __init__(
        self,
        folder: Path,
        setup: str,
        steps: int = STEPS,
        patience_s: float = PATIENCE_S,
        overlap: bool = False,
        fragments: int = 1,
    ) -> None:
        folder.mkdir(parents=True)
        self.name, self.folder, self.log, self.steps = setup, folder, folder / "log", steps
        experiment = write_experiment(folder, steps, overlap, fragments)
        self.setup: Setup = SETUPS[setup](folder, experiment, NAME, [*CURTAILED])
        self.store = self.setup.store
        self.injector = Injector(self.setup, patience_s, self.running)
        self.kinds = kinds_of(setup)
        self.ports: set[int] = set()
        self.faults = 0
        self.process = self.setup.launch(self.setup.words(), self.log)

    def __enter__(self) -> "Episode":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.setup.close()

    def running(self) -> bool:
        return self.process.poll() is None

    def _progress(self) -> tuple[int, int]:
        """Committed checkpoints and merged rounds of the segment that runs: either grows when work goes on."""
        store, lines = self.store, 0
        for key in store.list("scratch"):
            for attempt in store.list(f"scratch/{key}") if key.startswith("ckpt-") else ():
                with contextlib.suppress(NotStored, NotADirectoryError):
                    lines += store.read_bytes(journal_key(f"scratch/{key}/{attempt}")).count(b"\n")
        names = [name for name in store.list("checkpoints") if name.startswith("ckpt-")]
        return sum(store.exists(manifest_key(name)) for name in names), lines

    def disturb(self, kind: str, phase: Phase, site: str, tally: Tally) -> Strike | None:
        """One fault, and the wait until it is overcome; None where what it is to hit did not come."""
        while self.running() and not self.faults and self._is_preparing(phase):
            time.sleep(0.1)  # text and model are made before there is a federation
        self._note_ports()
        if kind in (RUN_KILLED, STOP_RUN):
            strike = self._strike_run(kind, phase, site)
        else:
            strike = self.kinds[kind](self.injector.at(site, phase))
        if strike is not None:
            self.faults += 1
            took = self._wait(strike)
            tally.strikes.append((self.name, kind, strike, took))
            how = "is not overcome" if took is None else f"is overcome after {took:.1f} s"
            print(f"{self.name}: {kind} ({strike.hit}) while {strike.phase} {how}", file=sys.stderr, flush=True)
        return strike

    def _is_preparing(self, phase: Phase) -> bool:
        ready = phase is Phase.PROVISIONING or self.setup.ready()
        return not (ready and self.store.exists(manifest_key("ckpt-000000")))

    def _strike_run(self, kind: str, phase: Phase, site: str) -> Strike | None:
        found = self.injector.at(site, phase).wait()
        if found is None:
            return None
        pid = self.process.pid
        strike = Strike(found, time.monotonic(), f"the command {pid}", lasts_s=5.0 if kind == STOP_RUN else 0.0)
        if kind == STOP_RUN:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(strike.lasts_s)
            os.kill(pid, signal.SIGCONT)
        else:
            self.process.kill()
            self.process.wait()
            self.process = self.setup.launch(self.setup.words(), self.log)
        return strike

    def _wait(self, strike: Strike) -> float | None:
        """Seconds until work has gone on and all parts are there again, or the run is over; None where neither came."""
        before, merged = self._progress(), False
        began = strike.at + strike.lasts_s
        while time.monotonic() - began < AT_MOST_S:
            code = self.process.poll()
            if code is not None:
                return max(0.0, time.monotonic() - began) if code == 0 else None
            merged = merged or self._progress() != before
            stopped = strike.pid is not None and is_stopped(strike.pid)
            if merged and time.monotonic() > began and not stopped and self.setup.ready():
                return time.monotonic() - began
            time.sleep(0.1)
        return None

    def _note_ports(self) -> None:
        self.ports |= listening_below([self.process.pid, *self.setup.roots()])

    def finish(self, tally: Tally) -> None:
        """Let the run end, and look at what it left."""
        self._note_ports()
        try:
            code = self.process.wait(EPISODE_S)
        except subprocess.TimeoutExpired:
            code = None
            self.process.kill()
        if code != 0:
            tally.finished = False
            tail = self.log.read_text(errors="replace")[-2000:]
            tally.problems.append(f"{self.folder.name} ({self.name}) ended with {code}: {tail}")
        self._check(tally)
        self.setup.close()
        left = orphans(self.folder)
        tally.orphans += len(left)
        tally.problems += left
        tally.ports += len(self.ports & listening_for(self.setup.homes))

    def _check(self, tally: Tally) -> None:
        checkpoints = Checkpoints(self.store, SEQUENCE)
        if any(checkpoints.damaged(key) for key in checkpoints.keys()):
            self._repair(tally)
        found = lineage_of(checkpoints, SEQUENCE)
        tally.commits_valid &= found.damage is None
        tally.ledger_exact &= found.miscounted is None
        tally.finished &= found.last is not None and found.last.steps.end == self.steps
        tally.problems += [f"{self.folder.name}: {what}" for what in (found.damage, found.miscounted) if what]
        tally.losses += [] if found.heldout_loss is None else [found.heldout_loss]

    def _repair(self, tally: Tally) -> None:
        """What an operator does when `verify` names a file: a parent may be damaged after it was last read."""
        process = self.setup.launch(("checkpoints", "repair", *self.setup.place_words()), self.folder / "repair.log")
        if process.wait(EPISODE_S) == 0:
            tally.repaired += 1


def _figures(tally: Tally, seed: int, fault_free: float) -> Mapping[str, object]:
    recovered = [s for *_, s in tally.strikes if s is not None]
    by_fault: dict[str, dict[str, Json]] = {}
    for kind in sorted({kind for _, kind, _, _ in tally.strikes}):
        times = [s for _, name, _, s in tally.strikes if name == kind]
        overcome = [round(s, 1) for s in times if s is not None]
        by_fault[kind] = {"count": len(times), "overcome": len(overcome), "recovery_s": [*overcome]}
    return {
        "faults": len(tally.strikes),
        "seed": seed,
        "finished": tally.finished,
        "ledger_exact": tally.ledger_exact,
        "commits_valid": tally.commits_valid,
        "repaired": tally.repaired,
        "orphans": tally.orphans,
        "ports": tally.ports,
        "heldout_loss": max(tally.losses, key=lambda loss: abs(loss - fault_free), default=None),
        "heldout_loss_faultfree": fault_free,
        "recovery_median_s": round(statistics.median(recovered), 2) if recovered else None,
        "recovery_max_s": round(max(recovered), 2) if recovered else None,
        "by_fault": by_fault,
        "by_setup": dict(sorted(Counter(setup for setup, *_ in tally.strikes).items())),
        "by_phase": dict(sorted(Counter(strike.phase.value for _, _, strike, _ in tally.strikes).items())),
        "problems": tally.problems,
        "load": round(os.getloadavg()[2], 1),
    }
