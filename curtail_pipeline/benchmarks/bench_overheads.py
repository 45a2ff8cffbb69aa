"""What a federation of resident trainers loses beside training, by size of the model: what `--overheads product` reads.

    curtail bench overheads --models d4,d8

For each size a SuperLink, and a SuperNode and a resident trainer for each of two sites, as `curtail federation up`
starts them; then a federated and a local segment through Flower. The tokens are zeros and the batches small: what is
timed is everything but training. The result goes to `settings/product_overheads.json`, with date, machine, version and
command, and takes the place of what was there.
"""

import contextlib
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from curtail_pipeline import __version__
from curtail_pipeline.benchmarks.bench_batches import sparse_shards
from curtail_pipeline.corpus.tokenizer import save_tokenizer, train_bpe
from curtail_pipeline.errors import CurtailError, FederationError
from curtail_pipeline.federation.orders import JournalLine, OuterSettings, ParentCheckpoint, Plan, PlannedRound
from curtail_pipeline.federation.plan import plan_key, read_journal, scratch_of
from curtail_pipeline.flower.local import Federation, LocalFederation
from curtail_pipeline.flower.submit import submit_and_follow
from curtail_pipeline.flower.trainer_client import Trainer
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.model_size import parameters_of
from curtail_pipeline.settings.overheads import MEASUREMENT_FILE, MeasuredModel, Measurement
from curtail_pipeline.storage.atomic import write_whole
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.records import Json
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.times import iso, utc_now

SITES = ("A", "B")
STEPS = 2
"""Of a site in a round."""
SEQUENCE_LENGTH = 64
WATCH_S = 0.02
START_TIMEOUT_S = 300.0


class _Watcher:
    """Asks trainers what they do, often, and notes when each was first seen with all steps of a round done."""

    def __init__(self, federation: Federation) -> None:
        self.trained: dict[tuple[str, str, int], float] = {}
        """Segment, site and round -> seconds since the epoch."""
        self._trainers = {site: Trainer(federation.endpoint(site)) for site in SITES}
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._look, args=(site,), daemon=True) for site in SITES]

    @contextmanager
    def watching(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    def _look(self, site: str) -> None:
        while not self._over.wait(WATCH_S):
            with contextlib.suppress(FederationError):  # too busy to answer: asked again
                status = self._trainers[site].status()
                if status.key is not None and status.round is not None and status.steps == STEPS:
                    self.trained.setdefault((status.key, site, status.round), time.time())


@dataclass
class _Times:
    """Wall seconds of one segment, a value per round."""

    load: list[float] = field(default_factory=list)
    tail: list[float] = field(default_factory=list)
    merge: list[float] = field(default_factory=list)
    first_step: float = 0.0
    """From the submission to the first step."""


def _experiment(preset: str, vocab_size: int) -> Experiment:
    power = {"training_kw": 1, "idle_kw": 1, "steps_per_s": 1}
    return parse_experiment(
        {
            "name": "overheads",
            "traces": {"provider": "synthetic", "start": "2026-01-01T00:00:00Z"},
            "sites": [{"name": site, "region": site, **power} for site in SITES],
            "job": {"steps": 1_000_000},
            "training": {
                "preset": preset,
                "sequence_length": SEQUENCE_LENGTH,
                "total_batch_tokens": SEQUENCE_LENGTH,
                "device_batch_sequences": 1,
                "model_overrides": {"vocab_size": vocab_size},
                "keep_inner_states": 1,
            },
            "federation": {"start_timeout_s": START_TIMEOUT_S, "liveness_s": 60},
        },
        "benchmark",
    )


def _plan(store: FolderStore, key: str, members: tuple[str, ...], rounds: int) -> str:
    """Write a plan from the initialised model, with fresh optimisers; its key."""
    parent = "checkpoints/ckpt-000000"
    planned = tuple(
        PlannedRound(
            index=index,
            steps=dict.fromkeys(members, STEPS),
            lease=dict.fromkeys(members, ((1, STEPS * index, STEPS * (index + 1)),)),
        )
        for index in range(rounds)
    )
    plan = Plan(
        key=key,
        parent=ParentCheckpoint(
            key="ckpt-000000",
            weights=f"{parent}/model.safetensors",
            sha256=file_sha256(store.path(f"{parent}/model.safetensors")),
            config=f"{parent}/config.json",
        ),
        members=members,
        mode="federated" if len(members) > 1 else "local",
        first_step=0,
        total_steps=1_000_000,
        rounds=planned,
        outer=OuterSettings(lr=0.7, momentum=0.9),
        norm_bound=1e9,
    )
    where = plan_key(scratch_of(key, 1))
    store.write_record(where, plan)
    return where


def _segment(
    federation: Federation, watcher: _Watcher, store: FolderStore, key: str, members: tuple[str, ...], rounds: int
) -> _Times:
    plan, times = _plan(store, key, members, rounds), _Times()
    submitted = time.time()
    submit_and_follow(federation, plan, store)
    for line in read_journal(store, scratch_of(key, 1)):
        _add(times, line, {site: watcher.trained.get((key, site, line.done.index)) for site in members}, submitted)
    if len(times.load) < 2:
        raise FederationError(f"{key}: the trainers were not seen at work in two rounds; run it on a quieter machine")
    return times


def _add(times: _Times, line: JournalLine, trained: Mapping[str, float | None], submitted: float) -> None:
    """A round's split, where every member was seen to end its training."""
    seen = {site: at for site, at in trained.items() if at is not None}
    if len(seen) < len(trained) or line.wall_s is None:
        return
    begun = {site: at - line.results[site].seconds for site, at in seen.items()}
    start, end = line.done.start.timestamp(), line.done.start.timestamp() + line.wall_s
    times.first_step = times.first_step or max(begun.values()) - submitted
    times.load.append(max(begun.values()) - start)
    times.tail.append(end - line.merge.seconds - max(seen.values()))
    times.merge.append(line.merge.seconds)


def _measure(folder: Path, preset: str, vocab_size: int, rounds: int) -> MeasuredModel:
    from curtail_pipeline.training.presets import init_checkpoint

    experiment, store = _experiment(preset, vocab_size), FolderStore(folder / "store")
    store.write_record("experiment.json", experiment)
    save_tokenizer(train_bpe(["text"], 512, "<|bos|>"), folder / "tokenizer", "<|bos|>")
    init_checkpoint(experiment.training, folder / "tokenizer", store.path("checkpoints/ckpt-000000"), seed=0)
    for site in SITES:
        sparse_shards(store, site, (STEPS * rounds + 1) * SEQUENCE_LENGTH + 1)
    began = time.monotonic()
    with LocalFederation(folder, experiment).ensure() as federation:
        joined = time.monotonic() - began
        watcher = _Watcher(federation)
        with watcher.watching():
            both = _segment(federation, watcher, store, "ckpt-000001", SITES, rounds)
            one = _segment(federation, watcher, store, "ckpt-000002", SITES[:1], rounds)
    weights = store.path("checkpoints/ckpt-000000/model.safetensors").stat().st_size
    return MeasuredModel(
        preset=preset,
        parameters=parameters_of(experiment.training, vocab_size),
        weights_mib=round(weights / 2**20, 1),
        rounds=len(both.load) - 1,
        join_s=round(joined, 2),
        first_load_s=round(both.first_step, 2),
        load_s=round(min(both.load[1:]), 2),
        tail_s=round(min(both.tail), 2),
        tail_single_s=round(min(one.tail), 2),
        merge_s=round(min(both.merge), 2),
    )


def _commit() -> str | None:
    """Of the checkout that this module lies in; `-dirty` where it has changes."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return None


def run(models: str = "d4,d8", rounds: int = 6, vocab_size: int = 65_536, out: str | None = None) -> dict[str, Json]:
    """Measure and write.

    Args:
        models: presets, separated by commas.
        rounds: of each segment; the first one warms up.
        vocab_size: the published run's by default.
        out: the file; the product's own when not given.

    Returns:
        `settings.overheads.Measurement`, as it was written.
    """
    load_average, commit = round(os.getloadavg()[0], 2), _commit()
    found = []
    for preset in models.split(","):
        with tempfile.TemporaryDirectory(prefix="curtail-overheads-") as folder:
            try:
                found.append(_measure(Path(folder), preset.strip(), vocab_size, rounds))
            except CurtailError:
                for log in sorted(Path(folder).glob("federation/logs/*.log")):
                    print(f"{log.name}:\n{log.read_text()[-2_000:]}", file=sys.stderr)
                raise
        print(found[-1].model_dump_json(), file=sys.stderr, flush=True)
    options = [f"--models {models}", f"--rounds {rounds}", f"--vocab-size {vocab_size}"]
    measured = Measurement(
        date=iso(utc_now().replace(microsecond=0)),
        machine=f"{os.cpu_count()} cores of a {platform.machine()} machine, {platform.system()}",
        load_average=load_average,
        version=__version__,
        commit=commit,
        command=" ".join(["curtail bench overheads", *options]),
        models=tuple(found),
    )
    write_whole(Path(out or MEASUREMENT_FILE), measured.model_dump_json(indent=2).encode() + b"\n")
    return measured.model_dump(mode="json")
