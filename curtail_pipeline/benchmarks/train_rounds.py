"""Rounds of a site's trainer on random tokens, timed: steps, what is beside them, and what snapshots cost.

As in a federation of several sites: each round begins with weights and an optimiser state that others have had a part
in, so that both are read again. The store is a folder of this machine; a line to another one is not timed.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from curtail_pipeline.corpus.tokenizer import save_tokenizer, train_bpe
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.federation.orders import Order, Phase, Result, SharedState, StoredWeights
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.tokens.ranges import Ranges
from curtail_pipeline.training.presets import init_checkpoint
from curtail_pipeline.training.step_progress import StepProgress
from curtail_pipeline.training.trainer import SiteTrainer
from curtail_pipeline.training.unfinished import RECORD, Unfinished

INIT = "init/model.safetensors"
SNAPSHOTS = 2
"""In the round that takes some: the first also has the host's memory pinned."""


@dataclass
class Rounds:
    """What was timed after the first round, which warms up."""

    step_s: list[float] = field(default_factory=list)
    fetch_s: list[float] = field(default_factory=list)
    """Of each round: reading weights and optimiser state and bringing them to the device."""
    store_s: list[float] = field(default_factory=list)
    """Of each round: from the end of its last step to its answer."""
    whole_s: list[float] = field(default_factory=list)
    """Of each round."""
    snapshot_s: float | None = None
    """By how much a snapshot made training longer; None where none was asked for."""
    slowest_snapshot_s: float | None = None
    """By how much the slowest step among snapshots was longer than the median."""


def time_rounds(
    folder: Path, experiment: Experiment, vocab_size: int, steps: int, rounds: int, snapshots: bool
) -> Rounds:
    """Train `rounds` rounds of `steps` steps; and with `snapshots` one of three times as many, which takes two.

    Raises:
        TrainingError: the site's devices are not there, or the model does not fit them.
    """
    settings = experiment.training
    store = FolderStore(folder / "store")
    store.write_record("experiment.json", experiment)
    save_tokenizer(train_bpe(["text"], 512, "<|bos|>"), folder / "tokenizer", "<|bos|>")
    init_checkpoint(settings, folder / "tokenizer", store.path("init"), seed=0)
    clock = _Clock()
    trainer = SiteTrainer(store, "S", experiment, _Random(vocab_size, experiment), clock)
    found, timed = Rounds(), _Timed(trainer, experiment, store)
    with closing(trainer):
        first = timed.round(steps)  # compiles
        merged = SharedState(name=first.inner_state.end, key="inner-0.safetensors")
        timed.round(1, merged)  # leaves other weights and another state than the next round begins with
        for _ in range(1, rounds):
            timed.round(steps, merged)
            found.step_s += timed.step_s
            found.fetch_s.append(timed.began["train"] - timed.began["fetch"])
            found.store_s.append(timed.end - timed.began["store"])
            found.whole_s.append(timed.end - timed.began["fetch"])
        if snapshots:
            _snapshots(found, timed, clock, steps, merged)
    return found


def require_enough(steps: int, rounds: int) -> None:
    """
    Raises:
        SettingsError: they are too few to time.
    """
    if steps < 2:
        raise SettingsError(f"--steps {steps} leaves no time between two steps of a round; give 2 or more")
    if rounds < 2:
        raise SettingsError(f"--rounds {rounds} leaves none behind the first, which warms up; give 2 or more")


def _snapshots(found: Rounds, timed: "_Timed", clock: "_Clock", steps: int, merged: SharedState) -> None:
    usual = statistics.median(found.step_s)
    timed.hurry = lambda done: clock.skip() if done % steps == 0 else None
    timed.round((SNAPSHOTS + 1) * steps, merged)
    if len(timed.written) != SNAPSHOTS:
        print(f"{len(timed.written)} of {SNAPSHOTS} snapshots were written: give more --steps", file=sys.stderr)
        return
    found.snapshot_s = max(0.0, sum(timed.step_s) - usual * len(timed.step_s)) / SNAPSHOTS
    found.slowest_snapshot_s = max(0.0, max(timed.step_s) - usual)


class _Clock:
    """The trainer's, which can be put on so that a snapshot is due."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.perf_counter() + self._ahead

    def skip(self) -> None:
        self._ahead += 1e6


class _Timed:
    """A trainer's rounds, one after the other, each from the same weights; the last one's times."""

    def __init__(self, trainer: SiteTrainer, experiment: Experiment, store: FolderStore) -> None:
        self._trainer, self._experiment, self._store = trainer, experiment, store
        self._parent = StoredWeights(key=INIT, sha256=file_sha256(store.path(INIT)))
        self._numbers = itertools.count()
        self._steps = 0
        self.hurry: Callable[[int], None] = lambda done: None
        """Told how many steps of a round are done."""
        self.step_s: list[float] = []
        self.began: dict[Phase, float] = {}
        self.end = 0.0
        self.written: set[int] = set()
        """The steps behind which there was a snapshot on disk."""

    def round(self, steps: int, shared: SharedState | None = None) -> Result:
        order, ends = self._order(steps, shared), list[float]()
        record = self._store.here("unfinished/S") / RECORD

        def stepped(told: StepProgress) -> None:
            ends.append(time.perf_counter())
            if record.exists():
                self.written.add(len(Unfinished.read(record.read_bytes(), str(record)).losses))
            self.hurry(told.steps)

        def works(phase: Phase) -> None:
            self.began["train" if phase == "compile" else phase] = time.perf_counter()

        result = self._trainer.train(order, stepped, on_phase=works)
        self.end = time.perf_counter()
        self.step_s = [b - a for a, b in pairwise(ends)]
        self._steps += steps
        took = self.end - self.began["fetch"]
        print(f"round {order.round}: {steps} steps, {took:.2f} s", file=sys.stderr)
        return result

    def _order(self, steps: int, shared: SharedState | None) -> Order:
        number = next(self._numbers)
        return Order(
            key="ckpt-000001",
            attempt=0,
            round=number,
            site="S",
            experiment_uri="experiment.json",
            store=str(self._store.root),
            parent=self._parent,
            config="init/config.json",
            inner_state=shared.name if shared else FRESH,
            shared=shared,
            first_step=self._steps,
            members=1,
            total_steps=1_000_000,
            max_steps=steps,
            deadline_s=None,
            lease=((1, 0, steps * self._experiment.sequences_per_step),),
            seed=0,
            out=f"round-{number}.safetensors",
            inner_out=f"inner-{number}.safetensors",
        )


class _Random:
    """Sequences of random tokens, made once."""

    def __init__(self, vocab_size: int, experiment: Experiment) -> None:
        shape = (experiment.sequences_per_step, experiment.training.sequence_length + 1)
        self._rows = np.random.default_rng(0).integers(vocab_size, size=shape)

    def batches(self, ranges: Ranges, sequences_per_batch: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
        while True:
            yield self._rows
