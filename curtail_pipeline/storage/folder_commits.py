"""Commits to a folder: a hidden sibling is assembled, flushed to disk, and renamed into place under a lock."""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.atomic import replacing, sync_file
from curtail_pipeline.storage.claims import Claim, Claims
from curtail_pipeline.storage.commits import (
    Sources,
    check_names,
    complete,
    missing_source,
    number,
    plain_errors,
    read_manifest,
    refuse_committed,
)
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import Fields, Manifest, StoredFile, check_link, make_manifest
from curtail_pipeline.storage.store import file_sha256


class FolderCommits:
    """See `commits.Commits`. A reader sees a whole checkpoint or none.

    Args:
        manifest: reads that of a committed checkpoint.
        sequence_length: tokens of one sequence; with it tokens are held against ranges.
    """

    def __init__(
        self, store: FolderStore, manifest: Callable[[str], Manifest], sequence_length: int | None = None
    ) -> None:
        self.store, self._manifest, self._sequence_length = store, manifest, sequence_length
        self._claims = Claims(store)

    def committed(self, key: str) -> bool:
        return self._claims.committed(key)

    def claim(self, key: str, generation: int, attempt: int) -> None:
        number(key)
        with plain_errors(f"{key} cannot be claimed"), self._claims.lock():
            if read_manifest(self.store, key) is not None:
                return
            self._refuse_damaged(key)
            self._claims.fence(key, generation, attempt)
            self._claims.write(Claim(key=key, generation=generation, attempt=attempt))

    def commit(self, key: str, files: Sources, fields: Fields, generation: int) -> Manifest:
        final = self._folder(key)
        attempt = int(fields.get("attempt", 0))
        check_names(key, files)
        with plain_errors(f"{key} cannot be committed to {self.store.root}"), self._lock(), ExitStack() as held:
            self._clean()
            self._refuse_if_committed(key)
            self._claims.fence(key, generation, attempt)
            parent = self._manifest(named) if (named := fields["parent"]) else None
            with replacing(final, sync=True) as scratch:
                scratch.mkdir()
                stored = {name: self._place(source, scratch / name) for name, source in sorted(files.items())}
                manifest = make_manifest(complete(key, parent, fields, stored, generation))
                check_link(parent, manifest, self._sequence_length)
                (scratch / "manifest.json").write_bytes(manifest.to_bytes())
                sync_file(scratch / "manifest.json")
                held.enter_context(self._claims.lock())  # until the folder is in its place
                self._claims.fence(key, generation, attempt)
                if final.exists():
                    self._set_aside(final)
                self._claims.write(Claim(key=key, generation=generation, attempt=attempt, committed=manifest.sha256()))
            sync_file(final.parent)
        return manifest

    def withdraw(self, key: str) -> str:
        with plain_errors(f"{key} cannot be set aside"), self._lock():
            return str(self._set_aside(self._folder(key)))

    def _folder(self, key: str) -> Path:
        number(key)
        return self.store.path(f"checkpoints/{key}")

    def _place(self, source: Path | str, target: Path) -> StoredFile:
        """Copy a file into the folder being assembled; a file of scratch that nothing else links to is linked.

        The link saves a copy of the weights. Other sources are copied, so that damage to one file is not damage to two.
        """
        path = source if isinstance(source, Path) else self.store.path(source)
        try:
            linkable = path.resolve().is_relative_to(self.store.path("scratch").resolve()) and path.stat().st_nlink == 1
            if linkable:
                os.link(path, target)
            else:
                shutil.copyfile(path, target)
        except FileNotFoundError as error:
            raise missing_source(path, target.name) from error
        sync_file(target)
        return StoredFile(sha256=file_sha256(target), bytes=target.stat().st_size)

    def _refuse_if_committed(self, key: str) -> None:
        if read_manifest(self.store, key) is not None:
            raise refuse_committed(self.store, key)
        self._refuse_damaged(key)

    def _refuse_damaged(self, key: str) -> None:
        """Before anything is trained for it again."""
        folder = self._folder(key)
        if folder.exists() and self._claims.committed(key):
            raise StoreError(
                f"{folder} was committed and is damaged: {self._damage(key)}. Nothing was changed; restore it from "
                "a copy, or move the folder away to train this segment again"
            )

    def _damage(self, key: str) -> str:
        try:
            self._manifest(key)
        except StoreError as error:
            return str(error).split(";")[0]
        return "its manifest"

    def _set_aside(self, folder: Path) -> Path:
        """Keep what lies in a key's place and is no checkpoint, out of the way."""
        aside = self.store.path(f"set_aside/{folder.name}-{uuid.uuid4().hex[:8]}")
        aside.parent.mkdir(exist_ok=True)
        return folder.rename(aside)

    def _clean(self) -> None:
        """Remove what killed writers left; only called under the commit lock, so nobody is writing it."""
        for left in self.store.path("checkpoints").glob(".ckpt-*.tmp"):
            shutil.rmtree(left, ignore_errors=True)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        path = self.store.path("checkpoints/.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield
