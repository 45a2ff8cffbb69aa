"""Who may commit a key: `claims/<key>.json` holds the newest `(generation, attempt)` that was told to make it."""

from collections.abc import Iterator
from contextlib import contextmanager

from filelock import FileLock

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.records import Message, Sha256


class Fenced(StoreError):
    """A newer writer was told to make this key."""


class Claim(Message):
    key: str
    generation: int
    attempt: int
    committed: Sha256 | None = None
    """sha256 of the manifest, once the key has a checkpoint: a folder that then cannot be read is damaged, not new."""


class Claims:
    """The claims of a folder."""

    def __init__(self, store: FolderStore) -> None:
        self._store = store

    def of(self, key: str) -> Claim | None:
        """The newest claim to a key."""
        name = f"claims/{key}.json"
        return self._store.read_record(name, Claim) if self._store.exists(name) else None

    def write(self, claim: Claim) -> None:
        """Only under the lock, after `fence`."""
        self._store.write_record(f"claims/{claim.key}.json", claim)

    @contextmanager
    def lock(self) -> Iterator[None]:
        path = self._store.path("claims/.lock")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path):
            yield

    def fence(self, key: str, generation: int, attempt: int) -> None:
        """As the function, against the newest claim."""
        fence(self.of(key), key, generation, attempt)

    def committed(self, key: str) -> bool:
        """Whether the key was ever committed."""
        claim = self.of(key)
        return claim is not None and claim.committed is not None


def fence(newest: Claim | None, key: str, generation: int, attempt: int) -> None:
    """Refuse a writer when a newer one was told to make the key.

    Raises:
        Fenced: there is one.
    """
    if newest is not None and (newest.generation, newest.attempt) > (generation, attempt):
        raise Fenced(
            f"{key}: generation {generation}, attempt {attempt} was overtaken by generation {newest.generation}, "
            f"attempt {newest.attempt}; this writer's result is not committed, the newer one's will be"
        )
