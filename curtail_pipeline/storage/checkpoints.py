"""Checkpoints: `checkpoints/<key>` in the store, committed whole and never replaced.

A reader sees a whole checkpoint or none: its manifest is there last. Who may commit a key, claims decide.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.checkpoint_index import CheckpointSummary, summarise_bytes
from curtail_pipeline.storage.commits import (
    Commits,
    Sources,
    manifest_key,
    number,
    plain_errors,
    read_manifest,
    reason,
)
from curtail_pipeline.storage.file_index import FileIndex
from curtail_pipeline.storage.folder_commits import FolderCommits
from curtail_pipeline.storage.folder_store import FolderStore, is_uri
from curtail_pipeline.storage.manifest import KEY_PATTERN, Fields, Manifest, check_link, parse_manifest
from curtail_pipeline.storage.object_commits import ObjectCommits
from curtail_pipeline.storage.records import Sha256
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store, StoredObject

FIRST_KEY = "ckpt-000000"
WEIGHTS_FILE = "model.safetensors"
MODEL_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
OWN_FILES = ("manifest.json", "plan.json", "rounds.jsonl", "segment.json", "outer.safetensors")
"""Files of a checkpoint folder that Hugging Face does not know; everything else is exported."""
_MANIFEST = "manifest"
_KEY = re.compile(KEY_PATTERN)


class ShownCheckpoint(Manifest):
    """Everything a manifest says, and where the folder is."""

    manifest_sha256: Sha256
    path: str
    bytes: int


def following(key: str) -> str:
    """The key after this one."""
    return f"ckpt-{number(key) + 1:06d}"


class Checkpoints:
    """The checkpoints of a store.

    Args:
        sequence_length: tokens of one sequence, for whoever commits or verifies: tokens are held against ranges.
    """

    def __init__(self, store: Store, sequence_length: int | None = None) -> None:
        self.store, self.sequence_length = store, sequence_length
        self.index = FileIndex(store)
        self._commits: Commits = (
            FolderCommits(store, self.manifest, sequence_length)
            if isinstance(store, FolderStore)
            else ObjectCommits(store, self.manifest, sequence_length)
        )

    # Reading

    def where(self, key: str) -> str:
        """Address of the checkpoint of this key, whether or not it exists."""
        number(key)
        return f"{self.store.uri}/checkpoints/{key}"

    @contextmanager
    def folder(self, key: str) -> Iterator[Path]:
        """The model and tokenizer files of a checkpoint as a folder of this machine, there until the block ends.

        Raises:
            StoreError: there is no such checkpoint, or a file is missing or corrupt.
        """
        names = [name for name in self.manifest(key).files if name not in OWN_FILES]
        if isinstance(self.store, FolderStore):
            yield self.store.path(f"checkpoints/{key}")
            return
        with ExitStack() as held, tempfile.TemporaryDirectory() as folder:
            for name in names:
                path = held.enter_context(self.store.local(f"checkpoints/{key}/{name}"))
                (Path(folder) / name).symlink_to(path)
            yield Path(folder)

    def keys(self) -> list[str]:
        """Keys of committed checkpoints, in order. A folder without a valid manifest does not exist."""
        return [key for key, found in self._indexed(self._names()) if found is not None]

    def summaries(self) -> list[CheckpointSummary]:
        """What a list says of each committed checkpoint, in order; a manifest that has not changed is not read."""
        found = [content for _, content in self._indexed(self._names()) if content is not None]
        return [CheckpointSummary.model_validate_json(content) for content in found]

    def last(self) -> str | None:
        """The newest committed key. Its manifest is read and checked, whatever the index says."""
        for key, found in self._indexed(self._names()[::-1]):
            if found is not None:
                if self.exists(key):
                    return key
                self.index.forget(_MANIFEST, key)
        return None

    def _indexed(self, names: Sequence[str]) -> Iterator[tuple[str, str | None]]:
        return self.index.look(_MANIFEST, names, manifest_key, summarise_bytes)

    def exists(self, key: str) -> bool:
        return read_manifest(self.store, key) is not None

    def manifest(self, key: str) -> Manifest:
        """The manifest of a committed checkpoint.

        Raises:
            StoreError: there is no such checkpoint, or its manifest is not what was written.
        """
        try:
            data = self.store.read_bytes(manifest_key(key))
        except NotStored:
            keys = self.keys()
            known = f"the store has {keys[0]} to {keys[-1]}" if keys else "the store has none yet"
            raise StoreError(f"no checkpoint {key!r} in {self.store.uri}; {known}") from None
        except OSError as error:
            raise StoreError(f"{manifest_key(key)} in {self.store.uri}: {reason(error)}") from error
        return parse_manifest(data, key)

    def verify(self, key: str) -> Manifest:
        """Hash every file of a checkpoint again, where it lies.

        Raises:
            CorruptObject: a file is missing or not what was committed; names the file and both hashes.
            StoreError: there is no such checkpoint, or it cannot be read now, which says nothing of its files.
        """
        return self._compared(key, self.store.digest)

    def check(self, key: str) -> Manifest:
        """That every file of a checkpoint is there and is the one that was committed, by the cheapest way.

        A folder's files are read. A bucket is asked; whoever fetches a file from it checks the content.

        Raises:
            CorruptObject, StoreError: as `verify`.
        """
        return self._compared(key, self.store.stat)

    def damaged(self, key: str, names: Collection[str] | None = None) -> list[str]:
        """Files of a checkpoint, all or these, that are missing or not what was committed; their content is read.

        Raises:
            StoreError: there is no such checkpoint, or it cannot be read now, which says nothing of its files.
        """
        manifest, found = self.manifest(key), []
        for name in manifest.files if names is None else names:
            try:
                self._compare(manifest, name, self.store.digest)
            except CorruptObject:
                found.append(name)
        return found

    def _compared(self, key: str, look: Callable[[str], StoredObject]) -> Manifest:
        manifest = self.manifest(key)
        for name in manifest.files:
            self._compare(manifest, name, look)
        return manifest

    def _compare(self, manifest: Manifest, name: str, look: Callable[[str], StoredObject]) -> None:
        address, stored = f"checkpoints/{manifest.key}/{name}", manifest.files[name]
        fix = (
            f"`curtail checkpoints repair {manifest.key}` makes it again, or restore it from a copy; "
            f"{manifest.parent or 'every earlier checkpoint'} is not affected"
        )
        try:
            found = look(address)
        except NotStored:
            raise CorruptObject(f"{address} is missing, expected sha256 {stored.sha256}; {fix}") from None
        except OSError as error:
            raise StoreError(f"{address} cannot be read: {reason(error)}") from error
        if found.sha256 != stored.sha256:
            raise CorruptObject(
                f"{address} is corrupt: expected sha256 {stored.sha256} ({stored.bytes} bytes), "
                f"found {found.sha256} ({found.bytes} bytes); {fix}"
            )

    def verify_link(self, key: str) -> None:
        """Check that a checkpoint follows from its parent; errors as of `verify_chain`."""
        child = self.manifest(key)
        check_link(self.manifest(child.parent) if child.parent else None, child, self.sequence_length)

    def verify_chain(self, files: bool = True) -> list[str]:
        """Check every checkpoint and that each follows from its parent; `files=False` reads manifests only.

        Returns the keys checked.

        Raises:
            StoreError: a committed checkpoint is damaged, a file or a link does not match.
            LedgerError: a token range is counted twice.
        """
        checked: dict[str, Manifest] = {}
        for key in self._names():
            if not self.exists(key):
                if self._commits.committed(key):
                    self.manifest(key)
                continue
            manifest = self.verify(key) if files else self.manifest(key)
            if manifest.parent is not None and manifest.parent not in checked:
                raise StoreError(
                    f"{key} names parent {manifest.parent}, which is not in the store; restore it from a copy"
                )
            check_link(checked[manifest.parent] if manifest.parent else None, manifest, self.sequence_length)
            checked[key] = manifest
        return [*checked]

    def lineage(self, key: str) -> list[str]:
        """The keys from the initialised model to this one.

        Raises:
            StoreError: a parent is missing.
        """
        chain = [key]
        while (parent := self.manifest(chain[-1]).parent) is not None:
            if number(parent) >= number(chain[-1]):
                raise StoreError(f"{chain[-1]} names {parent} as its parent, which does not come before it")
            chain.append(parent)
        return chain[::-1]

    def export(self, key: str, dest: Path | str, model_card: str | None = None) -> list[str]:
        """Copy the Hugging Face model folder of a checkpoint, verified, to a new folder; returns the file names.

        `model_card`: text of a `README.md` to add.

        Raises:
            StoreError: the checkpoint is corrupt, or the folder exists and holds something.
        """
        if is_uri(dest):
            raise StoreError(f"{str(dest)!r} is not a folder to export {key} to; export to one and copy it from there")
        manifest = self.check(key)
        dest = Path(dest).resolve()
        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            raise StoreError(f"{dest} exists and is not an empty folder; export to a new one")
        names = [name for name in manifest.files if name not in OWN_FILES]
        with (
            plain_errors(f"{key} cannot be exported to {dest}"),
            self.folder(key) as folder,
            replacing(dest) as scratch,
        ):
            scratch.mkdir()
            for name in names:
                shutil.copyfile(folder / name, scratch / name)
            if model_card is not None:
                (scratch / "README.md").write_text(model_card, encoding="utf-8")
                names.append("README.md")
        return names

    def show(self, key: str) -> ShownCheckpoint:
        manifest = self.manifest(key)
        return ShownCheckpoint(
            **manifest.model_dump(),
            manifest_sha256=manifest.sha256(),
            path=self.where(key),
            bytes=sum(stored.bytes for stored in manifest.files.values()),
        )

    # Writing

    def claim(self, key: str, generation: int, attempt: int = 0) -> None:
        """As `commits.Commits.claim`; a commit that was decided and cut off is carried out."""
        self._commits.claim(key, generation, attempt)

    def commit(self, key: str, files: Sources, fields: Fields, generation: int) -> Manifest:
        """As `commits.Commits.commit`."""
        return self._commits.commit(key, files, fields, generation)

    def withdraw(self, key: str) -> str:
        """Set a damaged checkpoint that has no child aside, so that its segment can be trained again; where it is now.

        Raises:
            StoreError: it is the initialised model, or a later one was made from it.
        """
        if number(key) == 0 or any(number(other) > number(key) for other in self.keys()):
            raise StoreError(
                f"{key} is what other checkpoints were made from; `curtail checkpoints repair {key}` makes it again, "
                "or restore it from a copy"
            )
        self.index.forget(_MANIFEST, key)
        return self._commits.withdraw(key)

    def _names(self) -> Sequence[str]:
        return [name for name in self.store.list("checkpoints") if _KEY.fullmatch(name)]
