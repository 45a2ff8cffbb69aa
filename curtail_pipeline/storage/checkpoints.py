"""Checkpoints: folders `checkpoints/<key>` in the store, committed whole and never replaced.

A commit assembles a hidden sibling folder, writes `manifest.json` last, flushes everything to disk and renames the
folder into place under a lock, so that a reader sees a whole checkpoint or none. Who may commit a key, claims decide.
"""

import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock

from curtail_pipeline.errors import SPACE, StoreError
from curtail_pipeline.storage.atomic import replacing, sync_file
from curtail_pipeline.storage.checkpoint_index import CheckpointSummary, summarise_bytes
from curtail_pipeline.storage.claims import Claim, Claims
from curtail_pipeline.storage.file_index import FileIndex
from curtail_pipeline.storage.manifest import (
    KEY_PATTERN,
    Content,
    Fields,
    Manifest,
    SiteResult,
    StoredFile,
    check_link,
    make_manifest,
    next_ledger,
    parse_manifest,
)
from curtail_pipeline.storage.package_versions import versions
from curtail_pipeline.storage.records import Sha256
from curtail_pipeline.storage.store import Store, file_sha256

FIRST_KEY = "ckpt-000000"
WEIGHTS_FILE = "model.safetensors"
MODEL_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
OWN_FILES = ("manifest.json", "plan.json", "rounds.jsonl", "segment.json", "outer.safetensors")
"""Files of a checkpoint folder that Hugging Face does not know; everything else is exported."""
_MANIFEST = "manifest"


class AlreadyCommitted(StoreError):
    """The key has a checkpoint; it is never replaced."""


class ShownCheckpoint(Manifest):
    """Everything a manifest says, and where the folder is."""

    manifest_sha256: Sha256
    path: str
    bytes: int


def number(key: str) -> int:
    """17 for `ckpt-000017`.

    Raises:
        StoreError: not a checkpoint key.
    """
    if not re.fullmatch(KEY_PATTERN, key):
        raise StoreError(f"{key!r} is not a checkpoint key; keys look like ckpt-000017")
    return int(key.removeprefix("ckpt-"))


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
        self.index = FileIndex(store.path("index.sqlite"))
        self._claims = Claims(store)

    # Reading

    def folder(self, key: str) -> Path:
        """Where the checkpoint of this key is, whether or not it exists."""
        number(key)
        return self.store.path(f"checkpoints/{key}")

    def keys(self) -> list[str]:
        """Keys of committed checkpoints, in order. A folder without a valid manifest does not exist."""
        return [key for key, found in self._indexed(self._names()) if found is not None]

    def summaries(self) -> list[CheckpointSummary]:
        """What a list says of each committed checkpoint, in order; a manifest that has not changed is not read."""
        found = [content for _, content in self._indexed(self._names()) if content is not None]
        return [CheckpointSummary.model_validate_json(content) for content in found]

    def last(self) -> str | None:
        """The newest committed key. Its manifest is read and checked, whatever the index says."""
        for key, found in self._indexed(reversed(self._names())):
            if found is not None:
                if self.exists(key):
                    return key
                self.index.forget(_MANIFEST, key)
        return None

    def next_key(self) -> str:
        """The key after the newest committed one; `ckpt-000000` in an empty store."""
        last = self.last()
        return FIRST_KEY if last is None else following(last)

    def _indexed(self, names: Iterable[str]) -> Iterator[tuple[str, str | None]]:
        root = str(self.store.path("checkpoints"))
        return self.index.look(_MANIFEST, ((key, f"{root}/{key}/manifest.json") for key in names), summarise_bytes)

    def exists(self, key: str) -> bool:
        try:
            parse_manifest((self.folder(key) / "manifest.json").read_bytes(), key)
        except (StoreError, OSError):
            return False
        return True

    def manifest(self, key: str) -> Manifest:
        """The manifest of a committed checkpoint.

        Raises:
            StoreError: there is no such checkpoint, or its manifest is not what was written.
        """
        try:
            data = (self.folder(key) / "manifest.json").read_bytes()
        except FileNotFoundError:
            keys = self.keys()
            known = f"the store has {keys[0]} to {keys[-1]}" if keys else "the store has none yet"
            raise StoreError(f"no checkpoint {key!r} in {self.store.root}; {known}") from None
        except OSError as error:
            raise StoreError(f"checkpoints/{key}/manifest.json in {self.store.root}: {_reason(error)}") from error
        return parse_manifest(data, key)

    def verify(self, key: str) -> Manifest:
        """Hash every file of a checkpoint again.

        Raises:
            StoreError: a file is missing or not what was committed; names the file and both hashes.
        """
        manifest = self.manifest(key)
        for name, stored in manifest.files.items():
            path = self.folder(key) / name
            fix = f"restore it from a copy; {manifest.parent or 'every earlier checkpoint'} is not affected"
            try:
                found, size = file_sha256(path), path.stat().st_size
            except FileNotFoundError:
                raise StoreError(
                    f"checkpoints/{key}/{name} is missing, expected sha256 {stored.sha256}; {fix}"
                ) from None
            except OSError as error:
                raise StoreError(f"checkpoints/{key}/{name} cannot be read: {_reason(error)}") from error
            if found != stored.sha256:
                raise StoreError(
                    f"checkpoints/{key}/{name} is corrupt: expected sha256 {stored.sha256} ({stored.bytes} bytes), "
                    f"found {found} ({size} bytes); {fix}"
                )
        return manifest

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
                if self._claims.committed(key):
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
        manifest = self.verify(key)
        dest = Path(dest).resolve()
        if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
            raise StoreError(f"{dest} exists and is not an empty folder; export to a new one")
        names = [name for name in manifest.files if name not in OWN_FILES]
        with _plain_errors(f"{key} cannot be exported to {dest}"), replacing(dest) as scratch:
            scratch.mkdir()
            for name in names:
                shutil.copyfile(self.folder(key) / name, scratch / name)
            if model_card is not None:
                (scratch / "README.md").write_text(model_card, encoding="utf-8")
                names.append("README.md")
        return names

    def show(self, key: str) -> ShownCheckpoint:
        manifest = self.manifest(key)
        return ShownCheckpoint(
            **manifest.model_dump(),
            manifest_sha256=manifest.sha256(),
            path=str(self.folder(key)),
            bytes=sum(stored.bytes for stored in manifest.files.values()),
        )

    # Writing

    def claim(self, key: str, generation: int, attempt: int = 0) -> None:
        """Record that this writer was told to make the key; older writers can no longer commit it.

        Raises:
            Fenced: a newer one was told already.
        """
        self.folder(key)
        with _plain_errors(f"{key} cannot be claimed"), self._claims.lock():
            self._claims.fence(key, generation, attempt)
            self._claims.write(Claim(key=key, generation=generation, attempt=attempt))

    def commit(self, key: str, files: Mapping[str, Path], fields: Fields, generation: int) -> Manifest:
        """Make a checkpoint of these files; nothing of it is visible before all of it is on disk.

        `files` maps the name in the folder to where the file is now. `fields` are the manifest's; `files`, `generation`
        and the hashes are filled in, and where not given `tokens.total`, `ledger` and `versions`.

        Raises:
            AlreadyCommitted: the key has a checkpoint.
            Fenced: a newer generation or attempt was told to make the key.
            LedgerError: a token range would be counted twice.
            StoreError: the manifest does not follow from its parent; a file is missing; the disk is full or read-only.
        """
        final = self.folder(key)
        attempt = int(fields.get("attempt", 0))
        for name in files:
            if Path(name).name != name or name in {"manifest.json", ".", ".."}:
                raise StoreError(
                    f"{name!r} cannot be a file of checkpoint {key}; give a plain name other than manifest.json"
                )
        what = f"{key} cannot be committed to {self.store.root}"
        with _plain_errors(what), self._lock(), ExitStack() as held:
            self._clean()
            self._refuse_if_committed(key)
            self._claims.fence(key, generation, attempt)
            parent = self.manifest(named) if (named := fields["parent"]) else None
            with replacing(final, sync=True) as scratch:
                scratch.mkdir()
                stored = {name: self._place(source, scratch / name) for name, source in sorted(files.items())}
                manifest = make_manifest(_complete(key, parent, fields, stored, generation))
                check_link(parent, manifest, self.sequence_length)
                (scratch / "manifest.json").write_bytes(manifest.to_bytes())
                sync_file(scratch / "manifest.json")
                held.enter_context(self._claims.lock())  # until the folder is in its place
                self._claims.fence(key, generation, attempt)
                if final.exists():
                    self._set_aside(final)
                self._claims.write(Claim(key=key, generation=generation, attempt=attempt, committed=manifest.sha256()))
            sync_file(final.parent)
        return manifest

    def withdraw(self, key: str) -> Path:
        """Set a damaged checkpoint that has no child aside, so that its segment can be trained again; where it is now.

        Raises:
            StoreError: it is the initialised model, or a later one was made from it.
        """
        with _plain_errors(f"{key} cannot be set aside"), self._lock():
            if number(key) == 0 or any(number(other) > number(key) for other in self.keys()):
                raise StoreError(f"{key} is what other checkpoints were made from; restore it from a copy")
            self.index.forget(_MANIFEST, key)
            return self._set_aside(self.folder(key))

    def _place(self, source: Path, target: Path) -> StoredFile:
        """Copy a file into the folder being assembled; a file of scratch that nothing else links to is linked.

        The link saves a copy of the weights. Other sources are copied, so that damage to one file is not damage to two.
        """
        try:
            linkable = source.resolve().is_relative_to(self.store.path("scratch")) and source.stat().st_nlink == 1
            if linkable:
                os.link(source, target)
            else:
                shutil.copyfile(source, target)
        except FileNotFoundError as error:
            raise StoreError(
                f"{source}, to be {target.name} of a checkpoint, does not exist; train the segment again"
            ) from error
        sync_file(target)
        return StoredFile(sha256=file_sha256(target), bytes=target.stat().st_size)

    def _refuse_if_committed(self, key: str) -> None:
        folder = self.folder(key)
        if self.exists(key):
            raise AlreadyCommitted(
                f"{key} is committed in {self.store.root} and is never replaced; commit the next key"
            )
        if folder.exists() and self._claims.committed(key):
            raise StoreError(
                f"{folder} was committed and is damaged: {self._damage(key)}. Nothing was changed; restore it from "
                "a copy, or move the folder away to train this segment again"
            )

    def _damage(self, key: str) -> str:
        try:
            self.manifest(key)
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

    def _names(self) -> Sequence[str]:
        try:
            found = os.listdir(self.store.path("checkpoints"))  # noqa: PTH208 - names alone, thousands of them
        except FileNotFoundError:
            return []
        return sorted(filter(re.compile(KEY_PATTERN).fullmatch, found))


def _complete(
    key: str, parent: Manifest | None, fields: Fields, stored: Mapping[str, StoredFile], generation: int
) -> Content:
    """The fields, and what follows from files and parent."""
    total = (parent.tokens.total if parent else 0) + fields["tokens"]["segment"]
    sites = {name: SiteResult.model_validate(site) for name, site in fields["sites"].items()}
    return {
        **fields,
        "attempt": fields.get("attempt", 0),
        "versions": fields.get("versions") or versions(),
        "ledger": fields["ledger"] if "ledger" in fields else next_ledger(parent, sites),
        "tokens": {"total": total, **fields["tokens"]},
        "key": key,
        "parent_manifest_sha256": parent.sha256() if parent else None,
        "files": stored,
        "generation": generation,
    }


def _reason(error: OSError) -> str:
    return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"


@contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """A failing file system as an error a user can act on."""
    try:
        yield
    except OSError as error:
        fix = "free space there" if error.errno in SPACE else "make the folder writable for this user"
        raise StoreError(f"{what}: {_reason(error)}. Nothing stored was changed; {fix} and run again") from error
