"""Which snapshots of inner optimiser states there are, and which go. Needs no torch."""

from collections.abc import Collection

from curtail_pipeline.federation.orders import Order
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import Store

SNAPSHOTS = "inner_state"
"""Where the states of live segments are; a replay keeps its own in its scratch folder."""
MERGED = "merged_state"
"""Where the merged states are that checkpoints name (`rounds.inner_state`)."""


def snapshot_key(site: str, state: str, folder: str = SNAPSHOTS) -> str:
    """The store key of a state called `sha256:<hex>`."""
    return f"{folder}/{site}/{state.removeprefix('sha256:')}.safetensors"


def merged_key(state: str) -> str:
    """The store key of a merged state called `sha256:<hex>`; none of `fresh`."""
    return "" if state == FRESH else f"{MERGED}/{state.removeprefix('sha256:')}.safetensors"


def prune_merged(store: Store, keep: int) -> list[str]:
    """Remove merged states but the newest `keep` that committed checkpoints name. The names of those removed."""
    checkpoints = Checkpoints(store)
    named: list[str] = []
    for key in reversed(checkpoints.keys()):
        states = checkpoints.manifest(key).inner_state
        named += [s for s in ((states.end, states.begin) if states else ()) if s != FRESH and s not in named]
        if len(named) >= keep:
            break
    spared = {merged_key(state) for state in named[:keep]}
    found = [f"{MERGED}/{name}" for name in store.list(MERGED) if not name.startswith(".")]
    removed = [key for key in found if key not in spared]
    for key in removed:
        store.delete(key)
    return [f"sha256:{key.removeprefix(f'{MERGED}/').removesuffix('.safetensors')}" for key in removed]


def prune_snapshots(store: Store, site: str, keep: int, protected: Collection[str] = ()) -> list[str]:
    """Remove a site's snapshots but the newest `keep` that committed checkpoints name and the protected ones.

    What codecs left out (residuals) is kept as long.

    Args:
        protected: states of a segment that goes on and is not committed yet.

    Returns:
        The names of those removed.
    """
    checkpoints = Checkpoints(store)
    named: list[str] = []
    residuals: list[str] = []
    for key in reversed(checkpoints.keys()):
        result = checkpoints.manifest(key).sites.get(site)
        for states, found in ((result and result.inner_state, named), (result and result.residual, residuals)):
            found += [s for s in ((states.end, states.begin) if states else ()) if s != FRESH and s not in found]
        if len(named) >= keep:
            break
    spared = {snapshot_key(site, state) for state in [*named[:keep], *residuals[:keep], *protected]}
    removed = []
    for name in store.list(f"inner_state/{site}"):
        key = f"inner_state/{site}/{name}"
        if not name.startswith(".") and key not in spared:
            store.delete(key)
            removed.append(f"sha256:{name.removesuffix('.safetensors')}")
    return removed


class RecentStates:
    """The retention setting, applied to a site after each of its rounds; states of the running segment always stay."""

    def __init__(self) -> None:
        self._segment: tuple[str, int] | None = None
        self._recent: set[str] = set()

    def prune(self, store: Store, order: Order, ended: Collection[str], keep: int | None) -> None:
        """Behind a round that ended with these states."""
        if self._segment != (order.key, order.attempt):
            self._segment, self._recent = (order.key, order.attempt), set()
        self._recent |= {order.inner_state, *ended}
        if keep is not None and order.links is None:  # which sees no manifest, so keeps all
            prune_snapshots(store, order.site, keep, self._recent)
