"""What a site sends of a round, and how it comes to the weights of the next: the trainer's side of an exchange.

What a codec left out of a site's updates (the residual) is float32, a snapshot of its own beside those of the
optimisers' state: named, kept, rolled back and replayed like them, and never sent. Where the weights are exchanged in
fragments it has all that was moved in the others, and the next round starts from there (`fragments`).
"""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from curtail_pipeline.errors import FederationError, TrainingError
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.merge_report import WrittenFile
from curtail_pipeline.federation.orders import Order, StoredDelta, StoredWeights
from curtail_pipeline.federation.state_file import write_state
from curtail_pipeline.federation.tensor_stream import Floats, TensorFile
from curtail_pipeline.federation.update_file import write_start, write_update, write_weights
from curtail_pipeline.storage.manifest import FRESH, InnerStates
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store, file_sha256
from curtail_pipeline.training.pending_upload import Files, pending_folder
from curtail_pipeline.training.snapshots import StateLost, load_snapshot, save_snapshot
from curtail_pipeline.training.weights import store_tensors

log = logging.getLogger(__name__)


class Residual:
    """A site's, kept in memory between rounds."""

    def __init__(self) -> None:
        self._name: str | None = FRESH
        self._left: dict[str, Floats] = {}
        """Flat, by name of tensor."""

    @property
    def name(self) -> str:
        """Of what the order that was loaded last really begins with."""
        return self._name or FRESH

    def left_of(self, order: Order) -> Mapping[str, Floats]:
        """What the order starts from besides its weights; nothing where it only sends it."""
        return self._left if order.goes_on else {}

    def load(self, files: Files, order: Order, folder: str) -> None:
        """Bring it to what the order begins with; to nothing where that is lost and the order's terms allow it.

        Raises:
            StateLost: they do not.
        """
        if order.residual == self._name:
            return
        self._name, self._left = FRESH, {}
        if order.residual == FRESH:
            return
        try:
            state = load_snapshot(files, order.site, order.residual, folder)
        except StateLost as error:
            if order.replay or order.terms.lost_state == "refuse":
                raise
            log.warning("what updates of %s left out is lost: %s", order.site, error)
            return
        self._name, self._left = order.residual, {name: tensor.numpy() for name, tensor in state.items()}

    def store_update(
        self,
        files: Files,
        order: Order,
        model: Mapping[str, torch.Tensor],
        folder: str,
        moved: bool,
        start: Path | None,
    ) -> tuple[WrittenFile, InnerStates | None]:
        """Write what the order's codec says of trained weights, and what it leaves out as a snapshot in the folder.

        Args:
            moved: False where no step was done: then nothing that was left out is sent either, but for an order that
                goes on from it.
            start: the weights that it started from; the parent's when not given.

        Raises:
            TrainingError: the weights are not finite.
        """
        if order.codec == "fp32":
            sha256, size = store_tensors(files, order.out, model)
            return WrittenFile(sha256=sha256, bytes=size), None
        begin = self.name
        if not (moved or order.goes_on):
            return _store_coded(files, order, model, {}, start), InnerStates(begin=begin, end=begin)
        self._name = None  # unknown until it is stored
        written = _store_coded(files, order, model, self._left, start)
        state = {name: torch.from_numpy(left) for name, left in self._left.items()}
        self._name = save_snapshot(files, order.site, state, folder)
        return written, InnerStates(begin=begin, end=self._name)


def _store_coded(
    files: Files,
    order: Order,
    model: Mapping[str, torch.Tensor],
    residual: dict[str, Floats],
    start: Path | None,
) -> WrittenFile:
    assert order.codec != "fp32"

    def weights(name: str, first: int, count: int) -> Floats:
        part: Floats = model[name].detach().flatten()[first : first + count].float().cpu().numpy()
        return part

    try:
        with (
            nullcontext(start) if start else files.local(order.parent.key) as path,
            TensorFile(path) as parent,
            files.new_file(order.out) as out,
        ):
            return write_update(out, CODECS[order.codec], parent, weights, residual, order.fragment)
    except FederationError as error:
        raise _too_large(order, error) from error


def _too_large(order: Order, error: FederationError) -> TrainingError:
    return TrainingError(f"site {order.site}: {error}; lower the learning rates or the steps of a round")


def store_inner(files: Files, order: Order, state: Mapping[str, torch.Tensor]) -> str:
    """Write an inner state that is merged, by the order's codec; its name.

    Raises:
        TrainingError: it is not finite.
    """
    if order.inner_codec == "fp32":
        return f"sha256:{store_tensors(files, order.inner_out, state)[0]}"
    values: dict[str, Floats] = {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()}
    try:
        with files.new_file(order.inner_out) as out:
            return f"sha256:{write_state(out, order.inner_codec, values).sha256}"
    except FederationError as error:
        raise _too_large(order, error) from error


class Start(NamedTuple):
    """Weights that a round starts from and nobody else has."""

    path: Path
    sha256: str

    def read(self) -> dict[str, torch.Tensor]:
        return load_file(self.path)


def make_start(files: Files, order: Order, left: Mapping[str, Floats]) -> Start | None:
    """Write the weights that a round starts from where nobody else has them: where the order names the site's own last
    update, or it goes on from what its updates have left out. None where it starts from the order's.

    Args:
        left: the latter, flat, by name of tensor.

    Raises:
        TrainingError: the update is not here any more, and not in the store; or it is not the one that the order means.
    """
    if order.own is None and not left:
        return None
    path = files.here(f"{pending_folder(order)}/start.safetensors")
    try:
        with (
            files.local(order.parent.key) as parent,
            files.local(order.own.key) if order.own else nullcontext() as own,
        ):
            if order.own and own and (found := file_sha256(own)) != order.own.sha256:
                raise TrainingError(
                    f"site {order.site}: its last update {order.own.key} is {found[:12]}, and the order goes on from "
                    f"{order.own.sha256[:12]}; end the segment, the next one goes on from merged weights"
                )
            return Start(path, write_start(parent, own, order.codec, left, path).sha256)
    except (FederationError, NotStored) as error:
        raise TrainingError(
            f"site {order.site} cannot go on from its last update: {error}; the next segment does from merged weights"
        ) from error


def receive(store: Store, order: Order, weights: StoredWeights, delta: StoredDelta | None) -> None:
    """Make weights of a delta, where its base is here and they are not; in a place of the order's own, since a replay
    may be worked on by another process.

    Whoever reads them afterwards finds them here. Where this cannot be done they are fetched whole.
    """
    if delta is None:
        return
    with store.held(weights.sha256) as there, store.held(delta.base.sha256) as base:
        if there is not None or base is None:
            return
        made = store.here(f"{pending_folder(order)}/received.safetensors")
        try:
            with store.local(delta.key) as path:
                written = write_weights(base, path, delta.codec, made)
        except (FederationError, NotStored, CorruptObject) as error:
            log.warning("%s fetches %s whole: %s", order.site, weights.key, error)
            return
        if written.sha256 == weights.sha256:
            store.keep(made, written.sha256)
        else:
            log.warning("%s fetches %s whole: its delta gave %s", order.site, weights.key, written.sha256[:12])
