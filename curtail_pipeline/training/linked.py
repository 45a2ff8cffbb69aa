"""The work of a site without credentials of the store: orders bring addresses, the rest stays in a folder of the site.

Shards are fetched once; of weights and updates those of the last order are kept, by a trainer that was started since,
too.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator

from curtail_pipeline.corpus.corpus_records import ShardManifest
from curtail_pipeline.errors import FederationError, TrainingError
from curtail_pipeline.federation.orders import Order, StoredDelta, StoredWeights
from curtail_pipeline.federation.update_file import write_weights
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.links import BROUGHT, Links
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store, file_sha256
from curtail_pipeline.training.retention import SNAPSHOTS

log = logging.getLogger(__name__)


class LinkedFolder:
    """See the module.

    Args:
        own: the site's own store.
    """

    def __init__(self, own: Store) -> None:
        self.store = FolderStore(own.here(BROUGHT))
        self.made: dict[str, str] = {}
        """What the last order has left here, key by sha256: to a site alone its own work comes back, by another key."""
        found = (path.relative_to(self.store.root) for path in self.store.root.rglob("*.safetensors"))
        self._last = {path.as_posix() for path in found if SNAPSHOTS not in path.parts}
        """What the last order was about, or whatever an earlier process has left."""
        self._swept = False

    @contextlib.contextmanager
    def working(self, order: Order, links: Links, has: Callable[[str], bool]) -> Iterator[None]:
        """What the order reads is here in the block; what it wrote is in the store after it, unless that is told later.

        Args:
            has: whether something need not be brought.

        Raises:
            StoreError: an address is refused, an object is gone or corrupt, or the store does not answer.
        """
        if not self._swept:
            self._sweep()
        shared = order.shared.key if order.shared else ""
        for key in (order.config, order.experiment_uri):
            self.store.write_bytes(key, links.read(key))
        self.bring_weights(order.site, order.parent, order.delta, links)
        needed = {order.parent.key, order.out, order.own.key if order.own else "", shared, order.inner_out} - {""}
        if shared and not has(shared):
            with contextlib.suppress(NotStored, CorruptObject):  # the order's terms say what a lost state means
                self._bring(links, shared, order.inner_state.removeprefix("sha256:"))
        for key in self._last - needed:
            self.store.delete(key)
        self._last = needed
        for key in links.get:
            if key.startswith("shards/") and key.endswith("/manifest.json"):
                self._bring_shards(links, key)
        if order.own is not None and not has(order.own.key):
            self._bring(links, order.own.key, order.own.sha256)
        yield
        if order.delivered:
            return  # it is on its way (`pending_upload`)
        for key in (order.inner_out, order.out):
            if key == order.out or (key and self.store.exists(key)):  # a round without a step leaves no inner state
                with self.store.local(key) as path:
                    links.send(key, path)

    def _sweep(self) -> None:
        """Remove what a process that was killed had fetched in part; an order is worked on by one at a time."""
        for left in [*self.store.root.rglob(".*.tmp")]:
            left.unlink(missing_ok=True)
        self._swept = True

    def _bring(self, links: Links, key: str, sha256: str) -> None:
        path, made = self.store.path(key), self.made.get(sha256)
        if path.exists() and file_sha256(path) == sha256:
            return
        if made and self.store.exists(made) and file_sha256(self.store.path(made)) == sha256:
            self.store.copy(made, key)
        else:
            links.fetch(key, path, sha256)

    def bring_weights(self, site: str, weights: StoredWeights, delta: StoredDelta | None, links: Links) -> None:
        """Weights that a round starts from: made of their delta where what that is based on is here. They go with the
        next order that does not need them."""
        self._last.add(weights.key)
        path = self.store.path(weights.key)
        if delta is not None and not path.exists():
            base = self.store.path(delta.base.key)
            if base.exists() and file_sha256(base) == delta.base.sha256:
                try:
                    self._bring(links, delta.key, delta.sha256)
                    write_weights(base, self.store.path(delta.key), delta.codec, path)
                except (FederationError, NotStored, CorruptObject) as error:
                    log.warning("%s fetches %s whole: %s", site, weights.key, error)
                self.store.delete(delta.key)
        self._bring(links, weights.key, weights.sha256)

    def _bring_shards(self, links: Links, key: str) -> None:
        data, folder = links.read(key), key.rpartition("/")[0]
        manifest = ShardManifest.read(data, key)
        if self.store.exists(key) and self.store.read_bytes(key) == data:
            return
        for file in manifest.files:
            name = f"{folder}/{file.name}"
            if name not in links.get:
                raise TrainingError(f"{name} is named in {key}, but the order brought no address for it; send it again")
            self._bring(links, name, file.sha256)
        self.store.write_bytes(key, data)
