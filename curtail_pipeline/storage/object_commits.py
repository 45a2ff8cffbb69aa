"""Commits to a bucket, where nothing can be renamed or locked: decided by one conditional write, then carried out.

`claims/<key>/<n>.json` is a log: entry n is written only where there is none (If-None-Match), so that writers on any
machines agree on its order. A claim is an entry. A commit is the entry that names the manifest and where every file
of the checkpoint is; from then on no other writer can win, and the files are copied to `checkpoints/<key>/`, the
manifest last. A writer that dies in between leaves a decided commit: the next one who claims or commits the key
carries it out.
"""

import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

from pydantic import Field

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.claims import Claim, fence
from curtail_pipeline.storage.commits import (
    Sources,
    check_names,
    complete,
    manifest_key,
    missing_source,
    number,
    plain_errors,
    read_manifest,
    refuse_committed,
)
from curtail_pipeline.storage.manifest import Fields, Manifest, StoredFile, check_link, make_manifest
from curtail_pipeline.storage.store import NotStored, Store, StoreUnavailable, canonical_json


class LoggedClaim(Claim):
    """An entry of a key's log."""

    sources: dict[str, str] = Field(default_factory=dict)
    """Of a commit: per file its store key until it is in its place."""


class ObjectCommits:
    """See `commits.Commits`.

    Args:
        manifest: reads that of a committed checkpoint.
        sequence_length: tokens of one sequence; with it tokens are held against ranges.
    """

    def __init__(self, store: Store, manifest: Callable[[str], Manifest], sequence_length: int | None = None) -> None:
        self.store, self._manifest, self._sequence_length = store, manifest, sequence_length

    def committed(self, key: str) -> bool:
        newest = self._newest(key)
        return newest is not None and newest[1].committed is not None

    def claim(self, key: str, generation: int, attempt: int) -> None:
        number(key)
        while True:
            newest = self._newest(key)
            if newest is not None and newest[1].committed is not None:
                self._carry_out(newest[1])
                self._refuse_damaged(key)
                self.store.delete(_staged(key))
                return
            fence(newest[1] if newest else None, key, generation, attempt)
            if self._append(newest, LoggedClaim(key=key, generation=generation, attempt=attempt)):
                return

    def commit(self, key: str, files: Sources, fields: Fields, generation: int) -> Manifest:
        store, attempt = self.store, int(fields.get("attempt", 0))
        number(key)
        check_names(key, files)
        self._refuse_committed(key, self._newest(key))
        parent = self._manifest(named) if (named := fields["parent"]) else None
        staged = f"{_staged(key)}/{uuid.uuid4().hex}"
        with plain_errors(f"{key} cannot be committed to {store.uri}"):
            try:
                sources = {name: self._stage(source, f"{staged}/{name}") for name, source in sorted(files.items())}
                manifest = make_manifest(complete(key, parent, fields, self._stats(sources), generation))
                check_link(parent, manifest, self._sequence_length)
                sources["manifest.json"] = f"{staged}/manifest.json"
                store.write_bytes(sources["manifest.json"], manifest.to_bytes())
                decided = LoggedClaim(
                    key=key, generation=generation, attempt=attempt, committed=manifest.sha256(), sources=sources
                )
                self._decide(decided)
            except StoreUnavailable:
                raise  # it may have been decided: what is staged would then be needed
            except Exception:
                store.delete(staged)
                raise
            self._carry_out(decided)
            for done in (key, named):  # with what writers left that died
                if done is not None:
                    store.delete(_staged(done))
        return manifest

    def withdraw(self, key: str) -> str:
        """As `Commits.withdraw`: an entry that commits nothing, then the objects move, the manifest first out of sight.

        Cut off in between it is to be called again.
        """
        store, place, aside = self.store, f"checkpoints/{key}", f"set_aside/{key}-{uuid.uuid4().hex[:8]}"
        while (newest := self._newest(key)) is not None and newest[1].committed is not None:
            last = newest[1]
            self._append(newest, LoggedClaim(key=key, generation=last.generation, attempt=last.attempt))
        for name in store.list(place):
            store.copy(f"{place}/{name}", f"{aside}/{name}")
        store.delete(manifest_key(key))
        store.delete(place)
        return f"{store.uri}/{aside}"

    def _decide(self, decided: LoggedClaim) -> None:
        while True:
            newest = self._newest(decided.key)  # one look at the log: what is judged is what the next entry follows
            self._refuse_committed(decided.key, newest)
            fence(newest[1] if newest else None, decided.key, decided.generation, decided.attempt)
            if self._append(newest, decided):
                return

    def _carry_out(self, decided: LoggedClaim) -> None:
        """Put a decided commit in its place; any number of writers may, at once or again."""
        store = self.store
        if store.exists(manifest_key(decided.key)):
            return
        try:
            for name, source in decided.sources.items():
                if name != "manifest.json":
                    store.copy(source, f"checkpoints/{decided.key}/{name}")
            data = store.read_bytes(decided.sources["manifest.json"])
        except NotStored as error:
            if store.exists(manifest_key(decided.key)):
                return  # another writer has done it and cleared up
            raise StoreError(
                f"{decided.key} was committed and is damaged: {error}. Nothing was changed; restore it from a copy, or "
                f"delete claims/{decided.key}/ to train this segment again"
            ) from error
        store.create_bytes(manifest_key(decided.key), data)

    def _refuse_committed(self, key: str, newest: tuple[int, LoggedClaim] | None) -> None:
        if newest is not None and newest[1].committed is not None:
            self._carry_out(newest[1])
            self._refuse_damaged(key)
            raise refuse_committed(self.store, key)

    def _refuse_damaged(self, key: str) -> None:
        if read_manifest(self.store, key) is None:
            raise StoreError(
                f"{key} in {self.store.uri} was committed and is damaged: its manifest is not what was written. "
                f"Nothing was changed; restore it from a copy, or delete claims/{key}/ and checkpoints/{key}/ to "
                "train this segment again"
            )

    def _stage(self, source: Path | str, key: str) -> str:
        """The store key where the file is until the commit is carried out; what is in the store already stays there."""
        if isinstance(source, str):
            return source
        try:
            self.store.put_file(source, key)
        except FileNotFoundError as error:
            raise missing_source(source, key.rpartition("/")[2]) from error
        return key

    def _stats(self, sources: Mapping[str, str]) -> dict[str, StoredFile]:
        found = {}
        for name, source in sources.items():
            try:
                known = self.store.stat(source)
            except NotStored as error:
                raise missing_source(source, name) from error
            found[name] = StoredFile(sha256=known.sha256, bytes=known.bytes)
        return found

    def _newest(self, key: str) -> tuple[int, LoggedClaim] | None:
        names = [name for name in self.store.list(f"claims/{key}") if name.endswith(".json")]
        if not names:
            return None
        return int(names[-1].removesuffix(".json")), self.store.read_record(f"claims/{key}/{names[-1]}", LoggedClaim)

    def _append(self, newest: tuple[int, LoggedClaim] | None, claim: LoggedClaim) -> bool:
        """Whether the claim is the log's next entry; False when another writer was first."""
        place = newest[0] + 1 if newest else 0
        return self.store.create_bytes(
            f"claims/{claim.key}/{place:08d}.json", canonical_json(claim.model_dump(mode="json"))
        )


def _staged(key: str) -> str:
    """Where files wait to become part of a checkpoint; nothing there is needed once its key is committed."""
    return f"scratch/.staged/{key}"
