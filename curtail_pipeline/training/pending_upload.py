"""What a site has trained, on its way to the store while the next round trains (`rounds.overlap`)."""

import itertools
import logging
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from curtail_pipeline.errors import CurtailError, StoreError
from curtail_pipeline.federation.answered import Delivered
from curtail_pipeline.federation.orders import Order
from curtail_pipeline.federation.plan import replay_folder
from curtail_pipeline.storage.store import Store

log = logging.getLogger(__name__)


class Files(Protocol):
    """Where a round's files are read and written: a store, or what is on its way there."""

    def local(self, key: str) -> AbstractContextManager[Path]: ...

    def new_file(self, key: str) -> AbstractContextManager[Path]: ...

    def adopt(self, source: Path, key: str) -> None: ...

    def here(self, name: str) -> Path: ...


def pending_folder(order: Order) -> str:
    """What a site has under way, on its machine: a replay's apart from that of live segments."""
    folder = f"pending/{order.site}"
    return f"{replay_folder(order.replay)}/{folder}" if order.replay else folder


class PendingUploads:
    """The files of a site's rounds. They are read from here until those of the next round are complete.

    One round's are sent at a time: an end that waits for the one before it is what bounds how many there are.

    Args:
        folder: of this machine, which nothing else uses; what is in it goes.
    """

    def __init__(self, store: Store, folder: Path) -> None:
        self.store, self.folder = store, folder
        self._numbers = itertools.count()
        self._made: dict[str, Path] = {}
        self._sent: dict[str, Path] = {}
        self._thread: threading.Thread | None = None
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def here(self, name: str) -> Path:
        return self.store.here(name)

    @contextmanager
    def local(self, key: str) -> Iterator[Path]:
        path = self._made.get(key) or self._sent.get(key)
        if path is not None:
            yield path
            return
        with self.store.local(key) as stored:
            yield stored

    @contextmanager
    def new_file(self, key: str) -> Iterator[Path]:
        path = self._path()
        yield path
        self._made[key] = path

    def adopt(self, source: Path, key: str) -> None:
        self._made[key] = source.replace(self._path())

    def _path(self) -> Path:
        return self.folder / f"{next(self._numbers)}.safetensors"

    def has(self, key: str) -> bool:
        """Whether it is on its way, or was in the last round's files."""
        return key in self._sent

    def discard(self) -> None:
        """Forget what was made of a round that will not be answered."""
        for path in self._made.values():
            path.unlink(missing_ok=True)
        self._made = {}

    def send(self, order: Order, weights_sha256: str) -> None:
        """Have what was made stored, by a thread of its own, and say so under `order.delivered`."""
        self.wait()
        for path in self._sent.values():
            path.unlink(missing_ok=True)
        self._sent, self._made = self._made, {}
        self._thread = threading.Thread(
            target=self._upload, args=(order, weights_sha256, dict(self._sent)), name="upload", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until nothing is on its way."""
        if self._thread is not None:
            self._thread.join()

    def remove(self) -> None:
        """Wait until nothing is on its way, and leave nothing here."""
        self.wait()
        self._made, self._sent = {}, {}
        shutil.rmtree(self.folder, ignore_errors=True)

    def _upload(self, order: Order, weights_sha256: str, files: dict[str, Path]) -> None:
        begin = time.perf_counter()
        try:
            for key, path in files.items():  # the site's own states too: they are named once the update counts
                self.store.put_file(path, key)
                if order.links is not None and key in (order.out, order.inner_out):
                    order.links.send(key, path)
            self._report(order, weights_sha256, time.perf_counter() - begin)
        except (CurtailError, OSError) as error:
            log.error("%s round %d of %s was not stored: %s", order.key, order.round, order.site, error)
            with suppress(StoreError):  # then the server's patience ends by itself
                self._report(order, weights_sha256, time.perf_counter() - begin, str(error))

    def _report(self, order: Order, weights_sha256: str, seconds: float, error: str = "") -> None:
        record = Delivered(
            site=order.site, round=order.round, weights_sha256=weights_sha256, seconds=seconds, error=error
        )
        if order.links is not None:
            order.links.write(order.delivered, record.model_dump_json().encode())
        else:
            self.store.write_record(order.delivered, record)
