"""Building token shards: slices are tokenised in any order, joined in theirs, and kept when a build is killed.

Everything unfinished is in `scratch/corpus/<id>/<target>/`: `parts/` of slices not joined yet, shard files up to the
length that `state.json` records, and nothing of it is trusted beyond that record. The finished files are moved to
their keys, the manifest last.
"""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
from filelock import FileLock, Timeout

from curtail_pipeline.corpus.block_digests import digested
from curtail_pipeline.corpus.corpus_records import (
    EngineChoice,
    Joined,
    ShardFile,
    ShardManifest,
    WaitingPart,
)
from curtail_pipeline.corpus.dealing import HELDOUT, TOKENIZER, Dealing, load_dealing
from curtail_pipeline.corpus.encoder import EncodingDiffers, Engine
from curtail_pipeline.corpus.worker_pool import Task, make_pool
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.atomic import write_whole
from curtail_pipeline.storage.records import Message
from curtail_pipeline.storage.store import Store, canonical_json

log = logging.getLogger(__name__)

ENGINE = "corpus/engine.json"
COPY_BYTES = 1 << 22
Progress = Callable[[int, int], None]
"""Called with (slices done, slices in all)."""


def folder_of(target: str) -> str:
    """Store key of the shards of a site, or of the held-out text."""
    return HELDOUT if target == HELDOUT else f"shards/{target}"


def manifest_key(target: str) -> str:
    return f"{folder_of(target)}/manifest.json"


def stored_manifest(store: Store, target: str) -> ShardManifest | None:
    """The manifest of a target's shards; None where they are not built."""
    key = manifest_key(target)
    return store.read_record(key, ShardManifest) if store.exists(key) else None


def any_manifest(store: Store, site: str) -> ShardManifest | None:
    """The site's, or, where it has no shards, those of another one; None where nobody's are built."""
    found = (stored_manifest(store, owner) for owner in (site, *store.list("shards")))
    return next((manifest for manifest in found if manifest is not None), None)


def build_targets(
    settings: CorpusSettings, store: Store, targets: Sequence[str], progress: Progress | None
) -> dict[str, ShardManifest]:
    """Build shards of several targets in one pass over the text. Returns their manifests.

    Raises:
        CorpusError: an unknown site, no text for a target, text that is not what it was when dealt, or another
            process building the same target. What is in the store stays as it is.
    """
    dealing = load_dealing(settings, store)
    for target in targets:
        dealing.number(target)
        _refuse_other_dealing(store, target, dealing)
    engine = _engine(store, targets)
    try:
        return _build(settings, store, dealing, targets, engine, progress)
    except EncodingDiffers as difference:
        log.warning("%s; encoding with tokenizers instead, several times slower", difference)
        store.write_record(ENGINE, EngineChoice(reason=str(difference)))
        shutil.rmtree(_scratch(store, dealing, engine))
        return _build(settings, store, dealing, targets, "tokenizers", progress)


def _engine(store: Store, targets: Sequence[str]) -> Engine:
    """What encoded the target before, else fastokens unless it was found to differ."""
    for target in targets:
        if (manifest := stored_manifest(store, target)) is not None:
            return manifest.engine
    return "tokenizers" if store.exists(ENGINE) else "fastokens"


def _refuse_other_dealing(store: Store, target: str, dealing: Dealing) -> None:
    manifest = stored_manifest(store, target)
    if manifest is not None and manifest.dealing_sha256 != dealing.sha256:
        raise CorpusError(
            f"{folder_of(target)} holds shards of another dealing of the corpus; mixing them is refused: restore "
            "corpus/manifest.json, or use another experiment name"
        )


def _build(
    settings: CorpusSettings,
    store: Store,
    dealing: Dealing,
    targets: Sequence[str],
    engine: Engine,
    progress: Progress | None,
) -> dict[str, ShardManifest]:
    root = _scratch(store, dealing, engine)
    units = len(dealing.source.slices)
    with ExitStack() as stack:
        joins = {}
        for target in targets:
            folder = root / target
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(f"{folder}.lock", timeout=0))
            except Timeout as error:
                raise CorpusError(f"another process is building the shards of {target}; wait for it") from error
            joins[target] = stack.enter_context(_Join(folder, dealing))

        def tasks() -> Iterator[Task]:
            for unit in range(units):
                missing = {target: join.part(unit) for target, join in joins.items() if not join.has(unit)}
                if missing:
                    yield unit, missing

        if any(not join.has(unit) for join in joins.values() for unit in range(units)):
            for unit, answer in make_pool(settings, dealing, store.mirror(TOKENIZER), engine).run(tasks()):
                for target, part in answer.parts.items():
                    joins[target].accept(unit, WaitingPart(part=part, counts=answer.counts))
                if progress:
                    progress(min(join.known for join in joins.values()), units)
        for join in joins.values():
            join.advance()
        manifests = {target: _manifest(target, join, dealing, engine) for target, join in joins.items()}
        for target, manifest in manifests.items():
            _commit(store, target, manifest, joins[target].folder)
    for target in targets:
        shutil.rmtree(root / target)
    return manifests


def _scratch(store: Store, dealing: Dealing, engine: Engine) -> Path:
    return store.here(f"scratch/corpus/{dealing.sha256[:16]}-{engine}")


class _Join:
    """Joins the parts of one target's slices, in their order, into files of `shard_tokens` tokens."""

    def __init__(self, folder: Path, dealing: Dealing) -> None:
        self.folder = folder
        self._size = np.dtype(dealing.tokenizer.dtype).itemsize
        self._shard_bytes = dealing.shard_tokens * self._size
        (folder / "parts").mkdir(exist_ok=True)
        self.joined = Joined()
        state = folder / "state.json"
        if state.exists():
            joined = Joined.read(state.read_bytes(), str(state))
            if self._trim(joined.part.tokens * self._size):
                self.joined = joined
        if self.joined.slices == 0:
            self._trim(0)
        self._ready = {
            int(path.stem)
            for path in (folder / "parts").glob("*.json")
            if self._length(path.with_suffix(".bin"))
            == WaitingPart.read(path.read_bytes(), str(path)).part.tokens * self._size
        }
        self._out: IO[bytes] | None = None

    @staticmethod
    def _length(path: Path) -> int:
        return path.stat().st_size if path.exists() else -1

    def _trim(self, length: int) -> bool:
        """Cut off what was written beyond `length` bytes in all. False when there are fewer."""
        present = 0
        for path in self.folder.glob("*.bin"):
            kept = min(max(length - int(path.stem) * self._shard_bytes, 0), self._shard_bytes)
            if kept == 0:
                path.unlink()
            elif path.stat().st_size >= kept:
                os.truncate(path, kept)
                present += kept
        return present == length

    def __enter__(self) -> "_Join":
        return self

    def __exit__(self, *_: object) -> None:
        if self._out is not None:
            self._out.close()

    @property
    def known(self) -> int:
        """Slices joined or waiting to be."""
        return self.joined.slices + len(self._ready)

    def has(self, unit: int) -> bool:
        return unit < self.joined.slices or unit in self._ready

    def part(self, unit: int) -> Path:
        return self.folder / "parts" / f"{unit:08d}.bin"

    def accept(self, unit: int, part: WaitingPart) -> None:
        """Take note of a written part, and join what is next in order."""
        _write(self.part(unit).with_suffix(".json"), part)
        self._ready.add(unit)
        self.advance()

    def advance(self) -> None:
        while (unit := self.joined.slices) in self._ready:
            record = self.part(unit).with_suffix(".json")
            added = WaitingPart.read(record.read_bytes(), str(record))
            with self.part(unit).open("rb") as part:
                self._append(part)
            self.joined = self.joined.with_next(added)
            _write(self.folder / "state.json", self.joined)
            self._ready.remove(unit)
            record.unlink()
            self.part(unit).unlink()

    def _append(self, part: IO[bytes]) -> None:
        at = self.joined.part.tokens * self._size
        while data := part.read(min(COPY_BYTES, self._shard_bytes - at % self._shard_bytes)):
            if self._out is None or at % self._shard_bytes == 0:
                self._next_file(at // self._shard_bytes)
            assert self._out is not None
            self._out.write(data)
            at += len(data)
        self._sync()

    def _next_file(self, index: int) -> None:
        self._sync()
        if self._out is not None:
            self._out.close()
        self._out = (self.folder / f"{index:05d}.bin").open("ab")

    def _sync(self) -> None:
        if self._out is not None:
            self._out.flush()
            os.fsync(self._out.fileno())

    def files(self) -> tuple[ShardFile, ...]:
        """The joined files."""
        return tuple(digested(path, path.stat().st_size // self._size) for path in sorted(self.folder.glob("*.bin")))


def _write(path: Path, message: Message) -> None:
    write_whole(path, canonical_json(message.model_dump(mode="json")))


def _manifest(target: str, join: _Join, dealing: Dealing, engine: Engine) -> ShardManifest:
    whole, counts, info = join.joined.part, join.joined.counts, dealing.tokenizer
    if not whole.documents:
        raise CorpusError(_nothing(dealing, target, counts.documents))
    return ShardManifest(
        target=target,
        dealing_sha256=dealing.sha256,
        tokenizer_sha256=info.sha256,
        vocab_size=info.vocab_size,
        separator_id=info.separator_id,
        dtype=info.dtype,
        engine=engine,
        documents=whole.documents,
        bytes=whole.bytes,
        tokens=whole.tokens,
        files=join.files(),
        slices=dealing.source.slices,
        counts=counts,
    )


def _nothing(dealing: Dealing, target: str, documents: int) -> str:
    if not documents:
        return f"corpus.source {dealing.source.text!r} has no document with text; name another source or text_column"
    if target == HELDOUT:
        return (
            f"the corpus is too small for the held-out split: none of {documents} documents falls into the fraction "
            f"{dealing.heldout_fraction}; raise corpus.heldout_fraction, add documents, or divide .txt files with "
            "corpus.text_separator"
        )
    return (
        f"none of {documents} documents is dealt to {target}; add documents, or divide .txt files with "
        "corpus.text_separator"
    )


def _without_blocks(manifest: ShardManifest) -> ShardManifest:
    """The digests of blocks follow from the files', and an earlier version wrote none."""
    files = tuple(file.model_copy(update={"blocks": ()}) for file in manifest.files)
    return manifest.model_copy(update={"files": files})


def _differing(before: ShardManifest, after: ShardManifest) -> str:
    """Names of the fields that are not the same."""
    return ", ".join(name for name, value in after if value != getattr(before, name))


def _commit(store: Store, target: str, manifest: ShardManifest, folder: Path) -> None:
    key, before = folder_of(target), stored_manifest(store, target)
    if before is not None and (differ := _differing(_without_blocks(before), _without_blocks(manifest))):
        raise CorpusError(
            f"building {key} again gives other {differ} than its manifest has: the text has changed since it "
            "was dealt. The stored shards are kept; restore the text, or use another experiment name"
        )
    for file in manifest.files:
        store.put_file(folder / file.name, f"{key}/{file.name}")
    store.write_record(manifest_key(target), manifest)
