"""What a commit of a checkpoint is, wherever the store lies: who may make one, and what its manifest is made of."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from curtail_pipeline.errors import SPACE, StoreError
from curtail_pipeline.storage.manifest import (
    KEY_PATTERN,
    Content,
    Fields,
    Manifest,
    SiteResult,
    StoredFile,
    next_ledger,
    parse_manifest,
)
from curtail_pipeline.storage.package_versions import versions
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store

Sources = Mapping[str, Path | str]
"""Per file of a checkpoint where it is now: a path of this machine, or a store key."""


class AlreadyCommitted(StoreError):
    """The key has a checkpoint; it is never replaced."""


class Commits(Protocol):
    """How checkpoints come into a store."""

    def claim(self, key: str, generation: int, attempt: int) -> None:
        """Record that this writer was told to make the key; older writers can no longer commit it.

        Raises:
            Fenced: a newer one was told already.
        """

    def commit(self, key: str, files: Sources, fields: Fields, generation: int) -> Manifest:
        """Make a checkpoint of these files; nothing of it is visible before all of it is there.

        `files` maps the name in the folder to where the file is now. `fields` are the manifest's; `files`, `generation`
        and the hashes are filled in, and where not given `tokens.total`, `ledger` and `versions`.

        Raises:
            AlreadyCommitted: the key has a checkpoint.
            Fenced: a newer generation or attempt was told to make the key.
            LedgerError: a token range would be counted twice.
            StoreError: the manifest does not follow from its parent; a file is missing; the store cannot be written.
        """

    def withdraw(self, key: str) -> str:
        """Set a damaged checkpoint aside, so that its key can be made again; where it is now."""

    def committed(self, key: str) -> bool:
        """Whether the key was ever committed: what then cannot be read is damaged, not new."""


def number(key: str) -> int:
    """17 for `ckpt-000017`.

    Raises:
        StoreError: not a checkpoint key.
    """
    if not re.fullmatch(KEY_PATTERN, key):
        raise StoreError(f"{key!r} is not a checkpoint key; keys look like ckpt-000017")
    return int(key.removeprefix("ckpt-"))


def manifest_key(key: str) -> str:
    return f"checkpoints/{key}/manifest.json"


def read_manifest(store: Store, key: str) -> Manifest | None:
    """The manifest of a checkpoint; None where there is none, or one that is not what was written."""
    try:
        data = store.read_bytes(manifest_key(key))
    except (NotStored, CorruptObject, OSError):
        return None
    try:
        return parse_manifest(data, key)
    except StoreError:
        return None


def check_names(key: str, files: Sources) -> None:
    """
    Raises:
        StoreError: a name that cannot be a file of a checkpoint.
    """
    for name in files:
        if Path(name).name != name or name in {"manifest.json", ".", ".."}:
            raise StoreError(
                f"{name!r} cannot be a file of checkpoint {key}; give a plain name other than manifest.json"
            )


def refuse_committed(store: Store, key: str) -> AlreadyCommitted:
    return AlreadyCommitted(f"{key} is committed in {store.uri} and is never replaced; commit the next key")


def missing_source(source: Path | str, name: str) -> StoreError:
    return StoreError(f"{source}, to be {name} of a checkpoint, does not exist; train the segment again")


def complete(
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


def reason(error: OSError) -> str:
    return f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """A failing file system as an error a user can act on."""
    try:
        yield
    except OSError as error:
        fix = "free space there" if error.errno in SPACE else "make the folder writable for this user"
        raise StoreError(f"{what}: {reason(error)}. Nothing stored was changed; {fix} and run again") from error
