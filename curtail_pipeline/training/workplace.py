"""Where a site's orders find and leave their files: its store, a folder that addresses fill, or on the way there."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from curtail_pipeline.federation.answered import Merged
from curtail_pipeline.federation.orders import Order
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.linked import LinkedFolder
from curtail_pipeline.training.pending_upload import Files, PendingUploads, pending_folder
from curtail_pipeline.training.prefetch import Prefetch
from curtail_pipeline.training.updates import receive

log = logging.getLogger(__name__)


class Workplace:
    """Of one site.

    Args:
        own: the site's own store; that of orders which bring no addresses.
    """

    def __init__(self, own: Store) -> None:
        self.store = own
        self._own, self._linked = own, LinkedFolder(own)
        self._uploads: dict[bool, PendingUploads] = {}
        """Of live segments, and of the replay that was worked on last."""
        self._prefetch: Prefetch | None = None

    @contextmanager
    def working(self, order: Order) -> Iterator[Files]:
        """What the order reads is in `store` within the block; yields where its files are written, and read again."""
        if self._prefetch is not None:
            self._prefetch.wait()
        self._prefetch = None
        self.store = self._linked.store if order.links else self._own
        with self._linked.working(order, order.links, self._on_its_way) if order.links else nullcontext():
            try:
                yield self._files_of(order)
            finally:
                if self._prefetch is not None:
                    self._prefetch.end()

    def look_ahead(self, order: Order) -> None:
        """Have what the next round starts from fetched while this one trains. To be called once this one's weights are
        here: what comes is told by how far it is from them."""
        if order.coming:
            self._prefetch = Prefetch(order.coming, *self._ways(order))

    def _ways(self, order: Order) -> tuple[Callable[[str], bytes], Callable[[Merged], None]]:
        """How a record is read, and how weights are brought to this machine."""
        if (links := order.links) is not None:
            return links.read, lambda found: self._linked.bring_weights(order.site, found.weights, found.delta, links)
        store = self.store

        def bring(found: Merged) -> None:
            receive(store, order, found.weights, found.delta)
            with store.local(found.weights.key):
                log.info("%s has the weights of its next round", order.site)

        return store.read_bytes, bring

    def _files_of(self, order: Order) -> Files:
        if not order.delivered:
            return self.store
        folder, found = self.store.here(pending_folder(order)), self._uploads.get(bool(order.replay))
        if found is None or (found.store, found.folder) != (self.store, folder):
            if found is not None:
                found.remove()
            found = self._uploads[bool(order.replay)] = PendingUploads(self.store, folder)
        found.discard()
        return found

    def send(self, order: Order, weights_sha256: str, inner_state: str) -> None:
        """Have what an order has left stored while the next one is worked on, if that is what it asks for."""
        self._linked.made = {weights_sha256: order.out, inner_state.removeprefix("sha256:"): order.inner_out}
        if order.delivered:
            self._uploads[bool(order.replay)].send(order, weights_sha256)

    def has(self, key: str) -> bool:
        """Whether what was made under this key is in the store, or on its way there."""
        return self._on_its_way(key) or self.store.exists(key)

    def _on_its_way(self, key: str) -> bool:
        return any(uploads.has(key) for uploads in [*self._uploads.values()])

    def settle(self) -> None:
        """Wait for what is on its way, in either direction."""
        if self._prefetch is not None:
            self._prefetch.wait()
        for uploads in self._uploads.values():
            uploads.wait()
