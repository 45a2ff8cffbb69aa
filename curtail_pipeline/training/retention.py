"""Which snapshots of inner optimiser states there are, and which go. Needs no torch."""

from collections.abc import Collection, Iterator

from curtail_pipeline.federation.orders import Order
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.records import Message
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
    return _remove_others(store, site, [*named[:keep], *residuals[:keep], *protected])


class Begun(Message):
    """What the last segments of a site that sees no manifest began with, each what the one before had ended with."""

    states: tuple[tuple[str, str], ...] = ()
    """Inner state and residual, the newest last."""


class RecentStates:
    """The retention setting, applied to a site after each of its rounds; states of the running segment always stay.

    A process that was started within a segment whose rounds overlap does not know what the site goes back to if the
    last update is refused: it removes nothing before the next segment.
    """

    def __init__(self) -> None:
        self._segment: tuple[str, int] | None = None
        self._knows_all = True
        self._recent: set[str] = set()

    def prune(self, store: Store, order: Order, ended: Collection[str], keep: int | None) -> None:
        """Behind a round that ended with these states."""
        begins = self._segment != (order.key, order.attempt)
        if begins:
            self._segment, self._recent = (order.key, order.attempt), set()
            self._knows_all = order.own is None
        self._recent |= {order.inner_state, order.residual, *ended}
        if keep is None or not self._knows_all:
            return
        if order.links is None:
            prune_snapshots(store, order.site, keep, self._recent)
        else:
            _remove_others(store, order.site, {*_begun(store, order, keep, begins), *self._recent})


def _begun(store: Store, order: Order, keep: int, begins: bool) -> Iterator[str]:
    """What the newest `keep` segments began with at a site that sees no manifest; it is written down there.

    Args:
        begins: the order is the first of its segment since this process has started.
    """
    key = f"{SNAPSHOTS}/{order.site}/.begun.json"
    known = store.read_record(key, Begun).states if store.exists(key) else ()
    if begins:
        states = order.inner_state, order.residual
        known = (*(each for each in known if each != states), states)[-keep:]
        store.write_record(key, Begun(states=known))
    for pair in known:
        yield from pair


def _remove_others(store: Store, site: str, states: Collection[str]) -> list[str]:
    """Remove a site's snapshots but these. The names of those removed."""
    spared, removed = {snapshot_key(site, state) for state in states}, []
    for name in store.list(f"{SNAPSHOTS}/{site}"):
        key = f"{SNAPSHOTS}/{site}/{name}"
        if not name.startswith(".") and key not in spared:
            store.delete(key)
            removed.append(f"sha256:{name.removesuffix('.safetensors')}")
    return removed
