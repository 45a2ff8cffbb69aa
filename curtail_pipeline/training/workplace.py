"""Where a site's orders find and leave their files: its store, a folder that addresses fill, or on the way there."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from curtail_pipeline.federation.orders import Order
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.linked import LinkedFolder
from curtail_pipeline.training.pending_upload import Files, PendingUploads, pending_folder


class Workplace:
    """Of one site.

    Args:
        own: the site's own store; that of orders which bring no addresses.
    """

    def __init__(self, own: Store) -> None:
        self.store = own
        self._own, self._linked = own, LinkedFolder(own)
        self._uploads: PendingUploads | None = None

    @contextmanager
    def working(self, order: Order) -> Iterator[Files]:
        """What the order reads is in `store` within the block; yields where its files are written, and read again."""
        self.store = self._linked.store if order.links else self._own
        with self._linked.working(order, order.links, self._on_its_way) if order.links else nullcontext():
            yield self._files_of(order)

    def _files_of(self, order: Order) -> Files:
        if not order.delivered:
            return self.store
        folder = self.store.here(pending_folder(order))
        if self._uploads is None or (self._uploads.store, self._uploads.folder) != (self.store, folder):
            self.close()
            self._uploads = PendingUploads(self.store, folder)
        self._uploads.discard()
        return self._uploads

    def send(self, order: Order, weights_sha256: str) -> None:
        """Have what an order has left stored while the next one is worked on, if that is what it asks for."""
        if order.delivered and self._uploads is not None:
            self._uploads.send(order, weights_sha256)

    def has(self, key: str) -> bool:
        """Whether what was made under this key is in the store, or on its way there."""
        return self._on_its_way(key) or self.store.exists(key)

    def _on_its_way(self, key: str) -> bool:
        return self._uploads is not None and self._uploads.has(key)

    def close(self) -> None:
        """Wait for what is on its way."""
        if self._uploads is not None:
            self._uploads.wait()
