"""A replayed week under `curtail ui`: sensors, daemon and federation of the live clock at high speed.

Once undisturbed, and once while every process is killed once, in random order at random moments. Both have to come to
the same: the whole budget, every token counted once, every commit valid, the same windows, and nothing left behind.
"""

import contextlib
import hashlib
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import yaml

from curtail_pipeline.benchmarks.chaos_checks import lineage_of, listening_below, listening_for, orphans
from curtail_pipeline.benchmarks.chaos_experiment import EXPERIMENT, NAME, SEQUENCE, START
from curtail_pipeline.benchmarks.chaos_setups import Local, Part
from curtail_pipeline.errors import CurtailError
from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.stages.evaluate import evaluation_key
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.commits import manifest_key

CURTAILED = {"NORTH": (9, 17), "SOUTH": (11, 19), "EAST": (13, 21)}
"""Hours of every day."""
DAYS = 7
STEPS, BATCH_TOKENS = 120, 4096
"""Of the job: about a third of what an undisturbed week has room for."""
COMMAND = "curtail ui"
DAGSTER = {
    "webserver": "dagster_webserver",
    "daemon": "curtail_pipeline.orchestration.daemon",
    "code server": "dagster api grpc",
    "run worker": "curtail_pipeline.orchestration.run_worker",
}
"""Words of the command line by which each is known."""
LOOK_S = 0.5
EVERY_S = 8.0
"""Between two kills, on average."""
START_S, OVER_S = 300.0, 60.0
"""How long the preparation may take, and the job beyond the replayed week."""


SAME = ("steps", "tokens", "windows_sha256", "ledger_exact", "commits_valid", "orphans", "ports")


@dataclass
class Figures:
    """What a replay comes to."""

    steps: int = 0
    tokens: int = 0
    checkpoints: int = 0
    heldout_loss: float | None = None
    windows_sha256: str = ""
    ledger_exact: bool = False
    commits_valid: bool = False
    orphans: int = 0
    ports: int = 0


def run(seed: int = 0, speed: float = 1200.0, days: int = DAYS, keep: str = "") -> Mapping[str, object]:
    """Replay the week twice.

    Args:
        speed: replayed seconds per second: at 1200 the week lasts 504 s and a window 24 s, which is what a busy machine
            needs to begin a segment.
        days: of the week.
        keep: a folder to work in, left as it is.
    """
    with contextlib.ExitStack() as held:
        folder = Path(keep or held.enter_context(tempfile.TemporaryDirectory(prefix="bench-soak-")))
        plain = Replay(folder / "undisturbed", speed, days).run(None)
        replay = Replay(folder / "disturbed", speed, days)
        disturbed = replay.run(random.Random(seed))
    return {"seed": seed, "speed": speed, "days": days} | figures(plain, disturbed, replay.killed, processes())


def figures(plain: Figures, disturbed: Figures, killed: Sequence[str], all_of_it: Sequence[str]) -> dict[str, object]:
    """What two replays come to, beside each other."""
    losses = plain.heldout_loss, disturbed.heldout_loss
    return {
        "finished": plain.steps == disturbed.steps == STEPS,
        "same": {name: getattr(plain, name) == getattr(disturbed, name) for name in SAME},
        "heldout_loss_change": round(losses[1] / losses[0] - 1, 4) if losses[0] and losses[1] else None,
        "undisturbed": vars(plain),
        "disturbed": vars(disturbed),
        "killed": [*killed],
        "not_killed": [name for name in all_of_it if name not in killed],
        "load": round(os.getloadavg()[2], 1),
    }


def processes() -> list[str]:
    """Names of all that a replay consists of."""
    of_sites = (Part.TRAINER, Part.SUPERNODE, Part.SITE_SUPEREXEC)
    sites = [f"{part} of {site}" for part in of_sites for site in CURTAILED]
    return [COMMAND, *DAGSTER, *(part for part in Part if part not in of_sites), *sites]


class Replay:
    """One replay in a home of its own."""

    def __init__(self, folder: Path, speed: float, days: int) -> None:
        folder.mkdir(parents=True)
        self.folder, self.length_s = folder, days * 86400 / speed
        self.setup = Local(folder, write_week(folder, speed, days), NAME, [*CURTAILED])
        self.checkpoints = Checkpoints(self.setup.store, SEQUENCE)
        self.words = ("ui", "--experiment", str(self.setup.experiment), "--port", str(free_port()))
        self.killed: list[str] = []
        self.ports: set[int] = set()

    def run(self, chance: random.Random | None) -> Figures:
        """To the end of the budget or the week; with `chance` every process is killed once on the way."""
        left = processes() if chance is not None else []
        if chance is not None:
            chance.shuffle(left)
        self.process = self.setup.launch(self.words, self.folder / "log")
        try:
            began = self._wait_for_start()
            due = began
            while time.monotonic() - began < self.length_s + OVER_S and not self._is_finished():
                if chance is not None and left and time.monotonic() > due:
                    due = time.monotonic() + chance.uniform(0.5, 1.5) * EVERY_S
                    struck = self._kill_one_of(left)
                    left = [name for name in left if name != struck]
                time.sleep(LOOK_S)
            self.ports |= listening_below([self.process.pid])
        finally:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(120)
            self.process.kill()
            self.process.wait()
        return self._figures()

    def _wait_for_start(self) -> float:
        """Until text and model are prepared; monotonic seconds.

        Raises:
            CurtailError: they are not in time.
        """
        deadline = time.monotonic() + START_S
        while not self.setup.store.exists(manifest_key("ckpt-000000")):
            if self.process.poll() is not None or time.monotonic() > deadline:
                ending = (self.folder / "log").read_text(errors="replace")[-1000:]
                raise CurtailError(f"the replay has not begun within {START_S:.0f} s: {ending}")
            time.sleep(LOOK_S)
        return time.monotonic()

    def _kill_one_of(self, left: list[str]) -> str | None:
        """Kill the first of these that there is now."""
        self.ports |= listening_below([self.process.pid])
        for name in left:
            pid = self._pid(name)
            if pid is not None:
                with contextlib.suppress(psutil.Error):
                    psutil.Process(pid).kill()
                    self.killed.append(name)
                    if name == COMMAND:
                        self.process.wait()
                        self.process = self.setup.launch(self.words, self.folder / "log")
                    return name
        return None

    def _pid(self, name: str) -> int | None:
        if name == COMMAND:
            return self.process.pid
        if name in DAGSTER:
            with contextlib.suppress(psutil.Error):
                for child in psutil.Process(self.process.pid).children(recursive=True):
                    if DAGSTER[name] in " ".join(child.cmdline()):
                        return child.pid
            return None
        part, _, site = name.rpartition(" of ")
        known = site in CURTAILED
        return self.setup.pid(site if known else next(iter(CURTAILED)), Part(part if known else name))

    def _is_finished(self) -> bool:
        last = self.checkpoints.last()
        return last is not None and self.setup.store.exists(evaluation_key(last)) and self._steps(last) >= STEPS

    def _steps(self, key: str) -> int:
        return self.checkpoints.manifest(key).steps.end

    def _figures(self) -> Figures:
        store, found, left = self.setup.store, Figures(), lineage_of(self.checkpoints, SEQUENCE)
        found.commits_valid, found.ledger_exact = left.damage is None, left.miscounted is None
        found.checkpoints, found.heldout_loss = len(left.keys), left.heldout_loss
        if left.last is not None:
            found.steps, found.tokens = left.last.steps.end, left.last.tokens.total
        digest = hashlib.sha256()
        for name in store.list("windows"):
            if store.size(f"windows/{name}") is not None:
                digest.update(store.read_bytes(f"windows/{name}"))
        found.windows_sha256 = digest.hexdigest()
        found.orphans = len(orphans(self.folder))
        found.ports = len(self.ports & listening_for(self.setup.homes))
        return found


def write_week(folder: Path, speed: float, days: int) -> Path:
    """Settings and trace; the settings' file."""
    rows = ["time," + ",".join(CURTAILED)]
    for minute in range(0, days * 1440, 5):
        wobble, hour = minute // 5 % 7, minute / 60 % 24  # a feed that stands still counts as stuck
        values = (f"{20 + wobble if start <= hour < end else 500 + wobble}" for start, end in CURTAILED.values())
        rows.append(f"{(START + timedelta(minutes=minute)).isoformat()}," + ",".join(values))
    (folder / "trace.csv").write_text("\n".join(rows) + "\n")
    path = folder / f"{NAME}.yaml"
    training = EXPERIMENT["training"]
    assert isinstance(training, dict)
    changes = {
        "traces": {"provider": "file", "path": str(folder / "trace.csv")},
        "replay": {"speed": speed},
        "overheads": {"provisioning_s": 0, "connect_s": 0},
        "rounds": {"round_s": 1.5 * speed, "max_rounds": 3},
        "job": {"steps": STEPS},
        "training": {**training, "total_batch_tokens": BATCH_TOKENS},
    }
    path.write_text(yaml.safe_dump({**EXPERIMENT, **changes}))
    return path
