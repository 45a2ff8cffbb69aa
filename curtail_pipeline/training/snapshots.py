"""Snapshots of a site's inner optimiser state: `<folder>/<site>/<sha256>.safetensors`, named by their content."""

import shutil
from collections.abc import Mapping

import torch

from curtail_pipeline.errors import FederationError, TrainingError
from curtail_pipeline.federation.orders import Order, SharedState
from curtail_pipeline.federation.plan import replay_folder
from curtail_pipeline.federation.state_file import read_state
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import CorruptObject, NotStored, file_sha256
from curtail_pipeline.training.pending_upload import Files
from curtail_pipeline.training.retention import SNAPSHOTS, snapshot_key
from curtail_pipeline.training.weights import checked_tensors, write_tensors


class StateLost(TrainingError):
    """An inner optimiser state that cannot be had any more."""


def save_snapshot(files: Files, site: str, tensors: Mapping[str, torch.Tensor], folder: str = SNAPSHOTS) -> str:
    """Store a state and return its name; a state without tensors is `fresh`."""
    if not tensors:
        return FRESH
    scratch = files.here(f"{folder}/{site}/.new/state.safetensors")
    shutil.rmtree(scratch.parent, ignore_errors=True)  # a process that was killed has left part of one
    name = f"sha256:{write_tensors(scratch, tensors)}"
    files.adopt(scratch, snapshot_key(site, name, folder))
    scratch.parent.rmdir()
    return name


def load_snapshot(files: Files, site: str, state: str, folder: str = SNAPSHOTS) -> dict[str, torch.Tensor]:
    """Read a state by name; one that is on its way to the store is had from there.

    Raises:
        StateLost: it was pruned, lost or damaged.
    """
    key = snapshot_key(site, state, folder)
    try:
        with files.local(key) as path:
            return checked_tensors(path, key, state.removeprefix("sha256:"))
    except NotStored:
        raise StateLost(
            f"the inner optimiser state {state} of site {site} is not in the store ({key}): it was pruned under "
            "training.keep_inner_states or removed; restore the file, or send the order with inner_state 'fresh' "
            "(then a replay is no longer bit-identical)"
        ) from None
    except (TrainingError, CorruptObject) as error:
        raise StateLost(str(error)) from error


def snapshots_of(order: Order) -> str:
    """Where the order's snapshots are: a replay's apart from those of live segments."""
    return f"{replay_folder(order.replay)}/{SNAPSHOTS}" if order.replay else SNAPSHOTS


def load_begin(files: Files, order: Order) -> dict[str, torch.Tensor]:
    """Read the inner state that an order begins with, which is not `fresh`.

    Raises:
        StateLost: it was pruned, lost or damaged.
    """
    if order.shared is not None:
        return load_merged(files, order.shared)
    return load_snapshot(files, order.site, order.inner_state, snapshots_of(order))


def load_merged(files: Files, shared: SharedState) -> dict[str, torch.Tensor]:
    """Read the merged state that an order brings.

    Raises:
        StateLost: it was pruned, lost or damaged.
    """
    try:
        with files.local(shared.key) as path:
            if (found := file_sha256(path)) != shared.name.removeprefix("sha256:"):
                raise StateLost(f"the merged inner state {shared.name} is corrupt: {shared.key} has sha256 {found}")
            return {name: torch.from_numpy(values) for name, values in read_state(path).items()}
    except (FederationError, CorruptObject, NotStored) as error:
        raise StateLost(f"the merged inner state {shared.name} cannot be had: {error}") from error
