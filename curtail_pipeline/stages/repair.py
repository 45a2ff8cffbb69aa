"""A damaged file of a committed checkpoint made again: copied from where it also is, or trained again from the parent.

A segment depends on its orders alone, so that what it gave can be made as often as it is lost. Nothing is put back
whose sha256 is not the manifest's.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from curtail_pipeline.corpus.dealing import TOKENIZER
from curtail_pipeline.errors import FederationError, StoreError
from curtail_pipeline.federation.orders import Segment
from curtail_pipeline.federation.progress import SegmentProgress
from curtail_pipeline.federation.segment_state import DELTA, OUTER
from curtail_pipeline.stages.aside import aside
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.replay import repeat, segment_of
from curtail_pipeline.storage.checkpoints import WEIGHTS_FILE, Checkpoints
from curtail_pipeline.storage.commits import plain_errors
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.store import Store, file_sha256
from curtail_pipeline.training.presets import init_checkpoint

TRAINED = (WEIGHTS_FILE, OUTER, DELTA)
"""Files that repeating the segment gives."""


@dataclass(frozen=True)
class Repaired:
    """What was damaged, and where it came from."""

    key: str
    copied: Mapping[str, str]
    """By file name, the checkpoint that had the same file."""
    trained: Sequence[str]
    """Files that came from training, or initialising, again."""
    steps: int
    """That were trained for them."""

    def __str__(self) -> str:
        said = [f"{name} copied from {other}" for name, other in self.copied.items()]
        how = f"made again by {self.steps} steps" if self.steps else "initialised again"
        said += [f"{', '.join(self.trained)} {how}"] if self.trained else []
        return f"{self.key}: {'; '.join(said) or 'is intact'}"


def repair_all(project: Project, on_progress: SegmentProgress) -> Iterator[Repaired]:
    """Every damaged checkpoint of the store, the oldest first: later ones are trained from it.

    Raises:
        StoreError, FederationError: as `repair_checkpoint`; those before it are repaired.
    """
    for key in project.checkpoints.keys():
        repaired = repair_checkpoint(project, key, on_progress)
        if repaired.copied or repaired.trained:
            yield repaired


def repair_checkpoint(project: Project, key: str, on_progress: SegmentProgress) -> Repaired:
    """Make what is damaged of a committed checkpoint again; nothing is trained or written where nothing is.

    Raises:
        StoreError: there is no such checkpoint, its parent is damaged too, or a record of how the segment went is.
        FederationError: training failed, or gave other weights. Nothing was put back then.
    """
    store, manifest = project.store, project.checkpoints.manifest(key)
    damaged = project.checkpoints.damaged(key)
    sources = {name: other for name in damaged if (other := _also_in(project.checkpoints, manifest, name))}
    for name, other in sources.items():
        with store.local(f"checkpoints/{other}/{name}") as path:
            _put(store, path, f"checkpoints/{key}/{name}")
    rest = [name for name in damaged if name not in sources]
    if rest and manifest.parent is None:
        _initialise_again(project, manifest, rest)
        return Repaired(key, sources, rest, 0)
    if lost := [name for name in rest if name not in TRAINED]:
        raise StoreError(
            f"{', '.join(lost)} of {key} cannot be made again: no other checkpoint has the same, and training gives "
            f"{', '.join(TRAINED)} only; restore it from a copy"
        )
    steps = _train_again(project, manifest, rest, on_progress) if rest else 0
    return Repaired(key, sources, rest, steps)


def _also_in(checkpoints: Checkpoints, manifest: Manifest, name: str) -> str | None:
    """Another checkpoint with the same file, whole."""
    for key in checkpoints.keys():
        same = key != manifest.key and checkpoints.manifest(key).files.get(name) == manifest.files[name]
        if same and not checkpoints.damaged(key, [name]):
            return key
    return None


def _initialise_again(project: Project, manifest: Manifest, names: Sequence[str]) -> None:
    """The initialised model, which seed and tokenizer give."""
    experiment, store = project.experiment, project.store
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        init_checkpoint(experiment.training, store.mirror(TOKENIZER), folder, experiment.seed)
        for name in names:
            _require_same(manifest, name, file_sha256(folder / name), "")
        for name in names:
            _put(store, folder / name, f"checkpoints/{manifest.key}/{name}")


def _train_again(project: Project, manifest: Manifest, names: Sequence[str], on_progress: SegmentProgress) -> int:
    store = project.store
    plan, realised = segment_of(project, manifest)
    with aside(store) as place:
        begin = place.take_begin(manifest)
        segment = repeat(project, place, manifest, begin.replay_of(plan, realised, place.identity), on_progress)
        made = _files_of(segment)
        for name in names:
            found = store.digest(made[name]).sha256 if name in made else "no such file"
            why = f"; the inner states of {', '.join(begin.lost)} were pruned" if begin.lost else ""
            _require_same(manifest, name, found, why)
        for name in names:
            with store.local(made[name]) as path:
                _put(store, path, f"checkpoints/{manifest.key}/{name}")
    return segment.steps


def _require_same(manifest: Manifest, name: str, found: str, why: str) -> None:
    wanted = manifest.files[name].sha256
    if found != wanted:
        raise FederationError(
            f"making {manifest.key} again gave another {name} ({found}, committed was {wanted}){why}; restore it from "
            "a copy"
        )


def _files_of(segment: Segment) -> dict[str, str]:
    """Store keys of what a segment gave, by the names that a checkpoint has for them."""
    made = {WEIGHTS_FILE: segment.weights.key}
    made |= {OUTER: segment.outer.key} if segment.outer else {}
    return made | ({DELTA: segment.delta.key} if segment.delta else {})


def _put(store: Store, path: Path, key: str) -> None:
    """A copy, never a link: damage to one file is not to be damage to two."""
    with plain_errors(f"{key} cannot be written"), store.new_file(key) as scratch:
        shutil.copyfile(path, scratch)
