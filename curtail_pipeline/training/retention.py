"""Which snapshots of inner optimiser states there are, and which go. Needs no torch."""

from collections.abc import Collection

from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import Store

SNAPSHOTS = "inner_state"
"""Where the states of live segments are; a replay keeps its own in its scratch folder."""


def snapshot_key(site: str, state: str, folder: str = SNAPSHOTS) -> str:
    """The store key of a state called `sha256:<hex>`."""
    return f"{folder}/{site}/{state.removeprefix('sha256:')}.safetensors"


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
