"""A replayed week under `curtail ui`: sensors, daemon and federation of the live clock at high speed.

Once undisturbed, and once while every process is killed once, in random order at random moments. What counts is the
same in both: the whole budget, every token counted once, every commit valid, the windows, and the held-out loss.
"""

import contextlib
import hashlib
import os
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import psutil
import yaml

from curtail_pipeline.benchmarks.chaos_checks import listening_below, listens, miscounted, orphans
from curtail_pipeline.benchmarks.chaos_experiment import EXPERIMENT, NAME, SEQUENCE, START
from curtail_pipeline.benchmarks.chaos_setups import Local, Part
from curtail_pipeline.errors import CurtailError
from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.stages.evaluate import evaluation_key
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.commits import manifest_key
from curtail_pipeline.storage.records import Json
from curtail_pipeline.training.heldout_loss import Evaluation

CURTAILED = {"NORTH": (9, 17), "SOUTH": (11, 19), "EAST": (13, 21)}
"""Hours of every day."""
DAYS = 7
STEPS = 240
COMMAND = "curtail ui"
DAGSTER = {
    "webserver": "dagster_webserver",
    "daemon": "curtail_pipeline.orchestration.daemon",
    "code server": "dagster api grpc",
    "run worker": "curtail_pipeline.orchestration.run_worker",
}
"""Words of the command line by which each is known."""
LOOK_S = 0.5
OVER_S = 30.0
"""How long after the replayed week the budget may be reached at the latest."""


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


def run(seed: int = 0, speed: float = 1500.0, keep: str = "") -> Mapping[str, object]:
    """Replay the week twice.

    Args:
        speed: replayed seconds per second: at 1500 the week lasts 403 s.
        keep: a folder to work in, left as it is.
    """
    with contextlib.ExitStack() as held:
        folder = Path(keep or held.enter_context(tempfile.TemporaryDirectory(prefix="bench-soak-")))
        plain = _Replay(folder / "undisturbed", speed).run(None)
        replay = _Replay(folder / "disturbed", speed)
        disturbed = replay.run(random.Random(seed))
    same = {
        name: getattr(plain, name) == getattr(disturbed, name)
        for name in ("steps", "tokens", "windows_sha256", "ledger_exact", "commits_valid", "orphans", "ports")
    }
    return {
        "seed": seed,
        "speed": speed,
        "finished": plain.steps == disturbed.steps == STEPS,
        "undisturbed": vars(plain),
        "disturbed": vars(disturbed),
        "same": same,
        "killed": replay.killed,
        "not_killed": [name for name in replay.processes() if name not in replay.killed],
        "load": round(os.getloadavg()[2], 1),
    }


class _Replay:
    """One replay in a home of its own."""

    def __init__(self, folder: Path, speed: float) -> None:
        folder.mkdir(parents=True)
        self.folder, self.length_s = folder, DAYS * 86400 / speed
        self.setup = Local(folder, _write(folder, speed), NAME, [*CURTAILED])
        self.checkpoints = Checkpoints(self.setup.store, SEQUENCE)
        self.words = ("ui", "--experiment", str(self.setup.experiment), "--port", str(free_port()))
        self.killed: list[str] = []
        self.ports: set[int] = set()

    def processes(self) -> list[str]:
        """Names of all that a replay consists of."""
        of_sites = (Part.TRAINER, Part.SUPERNODE, Part.SITE_SUPEREXEC)
        sites = [f"{part} of {site}" for part in of_sites for site in CURTAILED]
        others = [part for part in Part if part not in of_sites]
        return [COMMAND, *DAGSTER, *others, *sites]

    def run(self, chance: random.Random | None) -> Figures:
        """To the end of the budget or the week; with `chance` every process is killed once on the way."""
        left = self.processes()
        if chance is not None:
            chance.shuffle(left)
        self.process = self.setup.launch(self.words, self.folder / "log")
        try:
            began = self._wait_for_start()
            pause = 0.7 * self.length_s / len(left)
            due = began + pause
            while time.monotonic() - began < self.length_s + OVER_S and not self._is_finished():
                if chance is not None and left and time.monotonic() > due:
                    due += chance.uniform(0.5, 1.5) * pause
                    left = [name for name in left if name != self._kill_one_of(left)]
                time.sleep(LOOK_S)
            return self._figures()
        finally:
            self.process.terminate()
            with contextlib.suppress(psutil.TimeoutExpired):
                psutil.Process(self.process.pid).wait(120)
            self.process.kill()
            self.process.wait()

    def _wait_for_start(self) -> float:
        while not (self.setup.store.exists(manifest_key("ckpt-000000")) and self.setup.ready()):
            if self.process.poll() is not None:
                raise CurtailError(f"the replay ended at its start: {(self.folder / 'log').read_text()[-1000:]}")
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
        store, found = self.setup.store, Figures()
        self.ports |= listening_below([self.process.pid])
        self.process.terminate()
        self.process.wait(120)
        try:
            keys = self.checkpoints.verify_chain()
            found.commits_valid = True
        except CurtailError:
            keys = self.checkpoints.keys()
        manifests: list[dict[str, Json]] = [m for k in keys if isinstance(m := store.read_json(manifest_key(k)), dict)]
        found.ledger_exact = miscounted(manifests, SEQUENCE) is None
        last = self.checkpoints.manifest(keys[-1])
        found.steps, found.tokens, found.checkpoints = last.steps.end, last.tokens.total, len(keys)
        if store.exists(evaluation_key(keys[-1])):
            found.heldout_loss = store.read_record(evaluation_key(keys[-1]), Evaluation).loss
        digest = hashlib.sha256()
        for name in store.list("windows"):
            if store.size(f"windows/{name}") is not None:
                digest.update(store.read_bytes(f"windows/{name}"))
        found.windows_sha256 = digest.hexdigest()
        found.orphans = len(orphans(self.folder))
        found.ports = sum(listens(port) for port in self.ports)
        return found


def _write(folder: Path, speed: float) -> Path:
    rows = ["time," + ",".join(CURTAILED)]
    for minute in range(0, DAYS * 1440, 5):
        wobble, hour = minute // 5 % 7, minute / 60 % 24
        values = (f"{20 + wobble if start <= hour < end else 500 + wobble}" for start, end in CURTAILED.values())
        rows.append(f"{(START + timedelta(minutes=minute)).isoformat()}," + ",".join(values))
    (folder / "trace.csv").write_text("\n".join(rows) + "\n")
    path = folder / f"{NAME}.yaml"
    changes = {
        "traces": {"provider": "file", "path": str(folder / "trace.csv")},
        "replay": {"speed": speed},
        "rounds": {"round_s": 3 * speed, "max_rounds": 3},
        "job": {"steps": STEPS},
    }
    path.write_text(yaml.safe_dump({**EXPERIMENT, **changes}))
    return path
