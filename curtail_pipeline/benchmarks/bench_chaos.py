"""Random faults in local runs, and whether the runs come out as if there had been none.

A small experiment of three sites is run to the end of its budget, once undisturbed and then again and again while
processes are killed and stopped and files damaged, one fault at a time, each as soon as the one before is overcome.
Faults are drawn evenly over kinds and phases from the seed. What a run leaves is checked without the product's ledger.
"""

import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle
from pathlib import Path

import psutil
import yaml

from curtail_pipeline.benchmarks.fault_injector import Injector, Moment, Part, Phase, Strike, Target
from curtail_pipeline.errors import CurtailError
from curtail_pipeline.stages.evaluate import evaluation_key
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.commits import manifest_key
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.training.heldout_loss import Evaluation

START = datetime(2026, 5, 1, tzinfo=UTC)
SEQUENCE = 64
CURTAILED = {"NORTH": (10, 400), "SOUTH": (60, 460), "EAST": (200, 470)}
"""Minutes from START."""
EXPERIMENT: Mapping[str, object] = {
    "name": "chaos",
    "seed": 3,
    "sites": [
        {"name": name, "region": name, "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.004} for name in CURTAILED
    ],
    "rounds": {"round_s": 1200, "max_rounds": 2},
    "job": {"steps": 60},
    "corpus": {"vocab_size": 512, "sample_mib": 0.2, "heldout_fraction": 0.05, "max_documents": 400},
    "training": {
        "preset": "tiny",
        "model_overrides": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "sequence_length": SEQUENCE,
        "device_batch_sequences": 4,
        "total_batch_tokens": 512,
        "evaluation_sequences": 32,
    },
}
KINDS: Mapping[str, Callable[[Moment], Strike | None]] = {
    **{f"kill {part}": partial(Moment.kill, part=part) for part in Part},
    **{f"stop {part} for 5 s": partial(Moment.stop, seconds=5, part=part) for part in Part},
    **{
        f"stop {part} for ever": partial(Moment.stop, seconds=None, part=part)
        for part in Part
        if part is not Part.SUPERVISOR
    },
    "stop trainer for 60 s": partial(Moment.stop, seconds=60),
    "delay trainer": Moment.delay,
    **{f"damage {target}": partial(Moment.corrupt, target=target) for target in Target},
}
RUN_KILLED = "kill the command and start it again"
AT_MOST_S = 120.0
"""After which a fault counts as not overcome."""
EPISODE_S = 600.0
PATIENCE_S = 6.0
"""How long a phase is waited for: some last milliseconds here, and some do not come again."""


@dataclass
class Tally:
    """What has been seen so far."""

    strikes: list[tuple[str, Strike, float | None]] = field(default_factory=list)
    """Kind, fault, and seconds until the next round was merged or checkpoint committed; None where none came."""
    problems: list[str] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    finished: bool = True
    ledger_exact: bool = True
    commits_valid: bool = True
    orphans: int = 0
    ports: int = 0


def run(faults: int = 10, seed: int = 0, per_run: int = 5) -> Mapping[str, object]:
    """Disturb runs until so many faults took place; figures as in the module's text, times in wall seconds.

    Args:
        per_run: faults in one run at most; then it is left to finish, and the next one begins.
    """
    chance, tally = random.Random(seed), Tally()
    kinds = [*KINDS, RUN_KILLED]
    chance.shuffle(kinds)
    phases = [*Phase]
    chance.shuffle(phases)
    plan = zip(cycle(kinds), cycle(phases))
    with tempfile.TemporaryDirectory(prefix="bench-chaos-") as folder:
        undisturbed = _Episode(Path(folder) / "undisturbed")
        undisturbed.finish(tally)
        (fault_free,) = tally.losses or [float("nan")]
        tally.losses.clear()
        number = 0
        while len(tally.strikes) < faults and number < faults:
            number += 1
            episode = _Episode(Path(folder) / f"run-{number}")
            wanted = min(len(tally.strikes) + per_run, faults)
            while episode.running() and len(tally.strikes) < wanted:
                episode.disturb(*next(plan), chance, tally)
            episode.finish(tally)
    return _figures(tally, seed, fault_free)


class _Episode:
    """One run of the experiment in a home of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.file, self.homes = _write_experiment(folder), folder / "homes"
        self.home = self.homes / "chaos"
        self.log = folder / "log"
        self.injector = Injector(self.home, PATIENCE_S, self.running)
        self.ports: set[int] = set()
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("CURTAIL_", "DAGSTER_"))}
        command = [sys.executable, "-m", "curtail_pipeline.cli", "run", "--experiment", str(self.file)]
        with self.log.open("ab") as output:
            return subprocess.Popen(
                command, env={**clean, "CURTAIL_HOME": str(self.homes)}, stdout=output, stderr=output
            )

    def running(self) -> bool:
        return self.process.poll() is None

    def _progress(self) -> tuple[int, int]:
        """Committed checkpoints and merged rounds of the segment that runs: either grows when work goes on."""
        store = self.home / "store"
        lines = sum(
            path.read_bytes().count(b"\n") for path in store.glob("scratch/ckpt-*/*/rounds.jsonl") if path.exists()
        )
        return len([*store.glob("checkpoints/ckpt-*/manifest.json")]), lines

    def disturb(self, kind: str, phase: Phase, chance: random.Random, tally: Tally) -> None:
        """One fault, and the wait until it is overcome."""
        site = chance.choice([*CURTAILED])
        while self.running() and self.injector.phase(site) is Phase.PROVISIONING and phase is not Phase.PROVISIONING:
            time.sleep(0.1)  # text and model are made before there is a federation
        self._note_ports()
        if kind == RUN_KILLED:
            time.sleep(chance.uniform(0, PATIENCE_S))
            if not self.running():
                return
            strike: Strike | None = Strike(self.injector.phase(site), time.monotonic(), "the command")
            self.process.kill()
            self.process.wait()
            before = self._progress()
            self.process = self._start()
        else:
            strike = KINDS[kind](self.injector.at(site, phase))
            before = self._progress()
        if strike is None:
            return
        while self.running() and self._progress() == before and time.monotonic() - strike.at < AT_MOST_S:
            time.sleep(0.05)
        overcome = self._progress() != before or self.process.poll() == 0
        tally.strikes.append((kind, strike, time.monotonic() - strike.at if overcome else None))

    def _note_ports(self) -> None:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    listening = [c for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
                    self.ports |= {c.laddr.port for c in listening}

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
            tally.problems.append(f"{self.file.parent.name} ended with {code}: {tail}")
        self._check(tally)
        deadline = time.monotonic() + 20
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.2)
        tally.orphans += len(left)
        tally.ports += sum(_listens(port) for port in self.ports)

    def _processes(self) -> list[int]:
        """Process ids of whatever works in this home."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and str(self.homes) in " ".join(process.cmdline()):
                    found.append(process.pid)
        return found

    def _check(self, tally: Tally) -> None:
        store = FolderStore(self.home / "store")
        checkpoints = Checkpoints(store, SEQUENCE)
        try:
            keys = checkpoints.verify_chain()
        except CurtailError as error:
            tally.commits_valid = False
            tally.problems.append(str(error))
            keys = checkpoints.keys()
        if not keys:
            tally.finished = False
            return
        manifests = [json.loads(store.read_bytes(manifest_key(key))) for key in keys]
        tally.finished &= manifests[-1]["steps"]["end"] == EXPERIMENT["job"]["steps"]  # type: ignore[index]
        if (wrong := _miscounted(manifests)) is not None:
            tally.ledger_exact = False
            tally.problems.append(wrong)
        if store.exists(evaluation_key(keys[-1])):
            tally.losses.append(store.read_record(evaluation_key(keys[-1]), Evaluation).loss)


def _miscounted(manifests: list[dict[str, dict[str, dict[str, object]]]]) -> str | None:
    """What the manifests count wrong, told by listing every sequence; None where all of it is right."""
    seen: Counter[tuple[str, int, int]] = Counter()
    for manifest in manifests:
        for site, done in manifest["sites"].items():
            ranges = done["consumed"]
            assert isinstance(ranges, list)
            seen.update(
                (str(item[3]) if len(item) > 3 else site, item[0], at) for item in ranges for at in range(*item[1:3])
            )
        total = manifest["tokens"]["total"]
        if total != len(seen) * SEQUENCE:
            return f"{manifest['key']} counts {total} tokens, its lineage trained on {len(seen) * SEQUENCE}"
    twice = [place for place, count in seen.items() if count > 1]
    return f"{len(twice)} sequences were trained on twice, e.g. {twice[0]}" if twice else None


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _write_experiment(folder: Path) -> Path:
    rows = ["time," + ",".join(CURTAILED)]
    for minute in range(0, 480, 5):
        wobble = minute // 5 % 7  # a feed that stands still counts as stuck
        values = (f"{20 + wobble if start <= minute < end else 500 + wobble}" for start, end in CURTAILED.values())
        rows.append(f"{(START + timedelta(minutes=minute)).isoformat()}," + ",".join(values))
    (folder / "trace.csv").write_text("\n".join(rows) + "\n")
    path = folder / "chaos.yaml"
    traces = {"provider": "file", "path": str(folder / "trace.csv")}
    path.write_text(yaml.safe_dump({**EXPERIMENT, "traces": traces}))
    return path


def _figures(tally: Tally, seed: int, fault_free: float) -> Mapping[str, object]:
    recovered = [s for _, _, s in tally.strikes if s is not None]
    by_fault: dict[str, dict[str, float]] = {}
    for kind in sorted({kind for kind, _, _ in tally.strikes}):
        times = [s for name, _, s in tally.strikes if name == kind]
        overcome = [s for s in times if s is not None]
        by_fault[kind] = {"count": len(times), "overcome": len(overcome)}
        by_fault[kind] |= {"recovery_median_s": round(statistics.median(overcome), 2)} if overcome else {}
    return {
        "faults": len(tally.strikes),
        "seed": seed,
        "finished": tally.finished,
        "ledger_exact": tally.ledger_exact,
        "commits_valid": tally.commits_valid,
        "orphans": tally.orphans,
        "ports": tally.ports,
        "heldout_loss": statistics.median(tally.losses) if tally.losses else None,
        "heldout_loss_faultfree": fault_free,
        "recovery_median_s": round(statistics.median(recovered), 2) if recovered else None,
        "recovery_max_s": round(max(recovered), 2) if recovered else None,
        "by_fault": by_fault,
        "by_setup": {"local": len(tally.strikes)},
        "by_phase": dict(sorted(Counter(strike.phase.value for _, strike, _ in tally.strikes).items())),
        "problems": tally.problems,
    }
