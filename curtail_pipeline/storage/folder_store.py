"""A store whose root is a folder of this machine, or of a file system that it mounts."""

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.store import Method, NotStored, Stamp, Store, StoredObject, file_sha256

_PART = 1 << 16


class FolderStore(Store):
    """Objects are files: `root/key`.

    Raises:
        StoreError: the root is a URI, which is no folder.
    """

    def __init__(self, root: Path | str) -> None:
        if is_uri(root):
            raise StoreError(f"{root} is not a folder; open it with open_store")
        self.root = Path(root).resolve()
        self.uri = str(self.root)

    def path(self, key: str) -> Path:
        """Where the object of this key is, whether or not it exists. A link in the root is followed, whoever set it.

        Raises:
            StoreError: the key would leave the root.
        """
        return Path(self._address(key))

    def _address(self, key: str) -> str:
        """As `path`, by its text alone: a sensor's tick asks for thousands, and a Path costs as much as reading."""
        if key.startswith("/") or ".." in key.split("/"):
            raise StoreError(f"key {key!r} leaves the store {self.root}; keys are relative paths without '..'")
        return f"{self.uri}/{key}" if key else self.uri

    def exists(self, key: str) -> bool:
        return self.path(key).exists()

    def read_bytes(self, key: str) -> bytes:
        try:
            file = os.open(self._address(key), os.O_RDONLY)
        except FileNotFoundError:
            raise self._absent(key) from None
        try:
            return _whole(file, os.fstat(file).st_size)
        finally:
            os.close(file)

    def write_bytes(self, key: str, data: bytes) -> None:
        with replacing(self.path(key), sync=True) as scratch:
            scratch.write_bytes(data)

    def create_bytes(self, key: str, data: bytes) -> bool:
        try:
            with replacing(self.path(key), exclusive=True, sync=True) as scratch:
                scratch.write_bytes(data)
        except FileExistsError:
            return False
        return True

    def list(self, prefix: str) -> list[str]:
        folder = self._address(prefix)
        return sorted(os.listdir(folder)) if os.path.isdir(folder) else []  # noqa: PTH112, PTH208

    def delete(self, key: str) -> None:
        path = self.path(key)
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        path = self.path(key)
        if not path.is_file():
            raise self._absent(key)
        yield path

    @contextmanager
    def new_file(self, key: str) -> Iterator[Path]:
        with replacing(self.path(key)) as scratch:
            yield scratch

    def put_file(self, source: Path, key: str) -> None:
        with replacing(self.path(key)) as scratch:
            try:
                os.link(source, scratch)
            except OSError:
                shutil.copyfile(source, scratch)

    def adopt(self, source: Path, key: str) -> None:
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        source.replace(path)

    def copy(self, source: str, key: str) -> None:
        with self.local(source) as path:
            self.put_file(path, key)

    def size(self, key: str) -> int | None:
        path = self.path(key)
        return path.stat().st_size if path.is_file() else None

    def stat(self, key: str) -> StoredObject:
        return self.digest(key)

    def digest(self, key: str) -> StoredObject:
        path = self.path(key)
        try:
            return StoredObject(file_sha256(path), path.stat().st_size)
        except FileNotFoundError:
            raise self._absent(key) from None

    def stamps(self, keys: Iterable[str]) -> Iterator[Stamp | None]:
        for key in keys:
            try:
                yield _stamp(os.stat(f"{self.uri}/{key}"))  # noqa: PTH116
            except OSError:
                yield None

    def changed(self, known: Iterable[tuple[str, Sequence[int] | None]]) -> Iterator[tuple[Stamp | None, bytes | None]]:
        """As any store's. Behind a file that has changed the next one is opened without being looked at first."""
        likely = False
        for key, before in known:
            address, now, data = f"{self.uri}/{key}", None, None
            try:
                if not likely:
                    now = _stamp(os.stat(address))  # noqa: PTH116
                if likely or now != before:
                    file = os.open(address, os.O_RDONLY)
                    try:
                        now = _stamp(os.fstat(file))
                        likely = now != before
                        data = _whole(file, now.size) if likely else None
                    finally:
                        os.close(file)
            except OSError:
                data = None
            yield now, data

    def sign(self, method: Method, key: str, seconds: int) -> str:
        raise StoreError(
            f"the store {self.root} is a folder, which has no addresses to give away; keep the store in a bucket, or "
            "give every site the folder"
        )

    def here(self, name: str) -> Path:
        return self.path(name)

    @contextmanager
    def held(self, sha256: str) -> Iterator[None]:
        yield None

    def keep(self, source: Path, sha256: str) -> None:
        source.unlink()

    def mirror(self, key: str) -> Path:
        return self.path(key)

    def publish(self, key: str, last: str) -> None:
        """The mirrored folder is the store's own."""

    def under(self, prefix: str) -> "FolderStore":
        return FolderStore(self.path(prefix))

    def _absent(self, key: str) -> NotStored:
        return NotStored(f"{key} is not in the store {self.root}")


def _stamp(found: os.stat_result) -> Stamp:
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def _whole(file: int, size: int) -> bytes:
    """What is read of a descriptor: a sensor's tick reads thousands, of which making file objects is two fifths."""
    data = os.read(file, size + 1)
    if len(data) != size:  # it changes as it is read, or one call does not read as much
        while more := os.read(file, max(_PART, len(data))):
            data += more
    return data


def is_uri(location: Path | str) -> bool:
    """Whether this names something else than a folder. A path that went through `Path` has lost a slash."""
    text = str(location)
    scheme, colon, rest = text.partition(":")
    return bool(colon) and rest.startswith("/") and scheme.isalnum() and len(scheme) > 1 and "/" not in scheme
