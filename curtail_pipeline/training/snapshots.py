"""Snapshots of a site's inner optimiser state: `inner_state/<site>/<sha256>.safetensors`, named by their content."""

import uuid
from collections.abc import Collection, Mapping

import torch

from curtail_pipeline.errors import StoreError, TrainingError
from curtail_pipeline.federation.orders import FRESH
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.weights import read_tensors, store_tensors


def snapshot_key(site: str, state: str) -> str:
    """The store key of a state called `sha256:<hex>`."""
    return f"inner_state/{site}/{state.removeprefix('sha256:')}.safetensors"


def save_snapshot(store: Store, site: str, tensors: Mapping[str, torch.Tensor]) -> str:
    """Store a state and return its name; a state without tensors is `fresh`."""
    if not tensors:
        return FRESH
    scratch = f"inner_state/{site}/.{uuid.uuid4().hex}.tmp"
    digest, _ = store_tensors(store, scratch, tensors)
    name = f"sha256:{digest}"
    store.path(scratch).replace(store.path(snapshot_key(site, name)))
    return name


def load_snapshot(store: Store, site: str, state: str) -> dict[str, torch.Tensor]:
    """Read a state by name.

    Raises:
        TrainingError: it was pruned, lost or damaged.
    """
    key = snapshot_key(site, state)
    if not store.exists(key):
        raise TrainingError(
            f"the inner optimiser state {state} of site {site} is not in the store ({key}): it was pruned under "
            "training.keep_inner_states or removed; restore the file, or send the order with inner_state 'fresh' "
            "(then a replay is no longer bit-identical)"
        )
    return read_tensors(store, key, state.removeprefix("sha256:"))


def prune_snapshots(store: Store, site: str, keep: int, protected: Collection[str]) -> list[str]:
    """Remove all but the `keep` newest snapshots of a site and the protected ones; the names of those removed.

    Whatever `protected` says, the state that the newest committed checkpoint names for the site stays: the next
    segment begins with it.
    """
    spared = {*protected, *_committed(store, site)}
    folder = store.path(f"inner_state/{site}")
    found = sorted(folder.glob("[!.]*.safetensors"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    removed = []
    for path in [p for p in found if f"sha256:{p.stem}" not in spared][:-keep]:
        path.unlink(missing_ok=True)
        removed.append(f"sha256:{path.stem}")
    return removed


def _committed(store: Store, site: str) -> list[str]:
    """The state at the end of the newest committed segment in which the site trained."""
    for key in reversed(store.list("checkpoints")):
        try:
            manifest = store.read_json(f"checkpoints/{key}/manifest.json")
            return [manifest["sites"][site]["inner_state"]["end"]]
        except (StoreError, KeyError, TypeError):
            continue  # not committed, or the site did not train in it
    return []
