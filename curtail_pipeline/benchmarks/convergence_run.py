"""The arms of one seed one after the other, each kept as soon as it is done. For `bench convergence`."""

import hashlib
import re
import shutil
import sys
import tempfile
from pathlib import Path

from curtail_pipeline.benchmarks.quality_arms import Curve, Task
from curtail_pipeline.benchmarks.quality_run import experiment_of, prepare, train_arm
from curtail_pipeline.storage.atomic import write_whole
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.records import Message


class Seed(Message):
    """What a child process does: tasks whose text is dealt alike."""

    tasks: tuple[Task, ...]
    results: str
    """Folder."""


def result_of(task: Task, results: Path) -> Path:
    """Where the outcome of a task is kept: of the same task, it counts for any run."""
    digest = hashlib.sha256(task.model_dump_json().encode()).hexdigest()[:12]
    return results / f"{re.sub(r'[^a-z0-9]+', '-', task.arm.name.lower())}-{task.seed}-{digest}.json"


def train_seed(seed: Seed) -> None:
    """Train what has no outcome yet."""
    results = Path(seed.results)
    with tempfile.TemporaryDirectory(prefix="curtail-convergence-") as scratch:
        text, place = Path(scratch) / "text", Path(scratch) / "arm"
        for task in seed.tasks:
            if result_of(task, results).exists():
                continue
            if not text.exists():
                prepare(experiment_of(task), task.shares, FolderStore(text))
            shutil.copytree(text, place)
            curve = train_arm(task, place, at_the_end=True)
            write_whole(result_of(task, results), curve.model_dump_json().encode())
            shutil.rmtree(place)
            print(f"{curve.arm}, seed {curve.seed}: {curve.losses[-1]:.4f}", file=sys.stderr, flush=True)


def curve_of(task: Task, results: Path) -> Curve:
    """The kept outcome of a task."""
    path = result_of(task, results)
    return Curve.read(path.read_bytes(), str(path))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    train_seed(Seed.read(sys.argv[1], "the tasks of a child"))
