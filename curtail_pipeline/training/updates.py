"""What a site sends of a round, and how it comes to the weights of the next: the trainer's side of an exchange.

What a codec left out of a site's updates (the residual) is float32, a snapshot of its own beside those of the
optimisers' state: named, kept, rolled back and replayed like them, and never sent.
"""

import logging
from collections.abc import Mapping

import torch

from curtail_pipeline.errors import FederationError, TrainingError
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.merge_report import WrittenFile
from curtail_pipeline.federation.orders import Order
from curtail_pipeline.federation.state_file import write_state
from curtail_pipeline.federation.tensor_stream import Floats, TensorFile
from curtail_pipeline.federation.update_file import write_update, write_weights
from curtail_pipeline.storage.manifest import FRESH, InnerStates
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.snapshots import StateLost, load_snapshot, save_snapshot
from curtail_pipeline.training.weights import store_tensors

log = logging.getLogger(__name__)


class Residual:
    """A site's, kept in memory between rounds."""

    def __init__(self) -> None:
        self._name: str | None = FRESH
        self._left: dict[str, Floats] = {}
        """Flat, by name of tensor."""

    def load(self, store: Store, order: Order, folder: str) -> None:
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
            state = load_snapshot(store, order.site, order.residual, folder)
        except StateLost as error:
            if order.replay or order.terms.lost_state == "refuse":
                raise
            log.warning("what updates of %s left out is lost: %s", order.site, error)
            return
        self._name, self._left = order.residual, {name: tensor.numpy() for name, tensor in state.items()}

    def store_update(
        self, store: Store, order: Order, model: Mapping[str, torch.Tensor], folder: str, moved: bool
    ) -> tuple[WrittenFile, InnerStates | None]:
        """Write what the order's codec says of trained weights, and what it leaves out as a snapshot in the folder.

        Args:
            moved: False where no step was done: then nothing that was left out is sent either.

        Raises:
            TrainingError: the weights are not finite.
        """
        if order.codec == "fp32":
            sha256, size = store_tensors(store, order.out, model)
            return WrittenFile(sha256=sha256, bytes=size), None
        begin = self._name or FRESH
        if not moved:
            return _store_coded(store, order, model, {}), InnerStates(begin=begin, end=begin)
        self._name = None  # unknown until it is stored
        written = _store_coded(store, order, model, self._left)
        state = {name: torch.from_numpy(left) for name, left in self._left.items()}
        self._name = save_snapshot(store, order.site, state, folder)
        return written, InnerStates(begin=begin, end=self._name)


def _store_coded(
    store: Store, order: Order, model: Mapping[str, torch.Tensor], residual: dict[str, Floats]
) -> WrittenFile:
    assert order.codec != "fp32"

    def weights(name: str, first: int, count: int) -> Floats:
        part: Floats = model[name].detach().flatten()[first : first + count].float().cpu().numpy()
        return part

    try:
        with (
            store.local(order.parent.key) as path,
            TensorFile(path) as parent,
            store.new_file(order.out) as out,
        ):
            return write_update(out, CODECS[order.codec], parent, weights, residual)
    except FederationError as error:
        raise _too_large(order, error) from error


def _too_large(order: Order, error: FederationError) -> TrainingError:
    return TrainingError(f"site {order.site}: {error}; lower the learning rates or the steps of a round")


def store_inner(store: Store, order: Order, state: Mapping[str, torch.Tensor]) -> str:
    """Write an inner state that is merged, by the order's codec; its name.

    Raises:
        TrainingError: it is not finite.
    """
    if order.inner_codec == "fp32":
        return f"sha256:{store_tensors(store, order.inner_out, state)[0]}"
    values: dict[str, Floats] = {name: tensor.detach().float().cpu().numpy() for name, tensor in state.items()}
    try:
        with store.new_file(order.inner_out) as out:
            return f"sha256:{write_state(out, order.inner_codec, values).sha256}"
    except FederationError as error:
        raise _too_large(order, error) from error


def receive(store: Store, order: Order) -> None:
    """Make the order's weights of the delta that it brings, where its base is here and they are not.

    Whoever reads them afterwards finds them here. Where this cannot be done they are fetched whole.
    """
    delta = order.delta
    if delta is None:
        return
    with store.held(order.parent.sha256) as there, store.held(delta.base.sha256) as base:
        if there is not None or base is None:
            return
        made = store.here(f"received/{order.site}.safetensors")
        try:
            with store.local(delta.key) as path:
                written = write_weights(base, path, delta.codec, made)
        except FederationError as error:
            log.warning("%s fetches %s whole: %s", order.site, order.parent.key, error)
            return
        if written.sha256 == order.parent.sha256:
            store.keep(made, written.sha256)
        else:
            log.warning("%s fetches %s whole: its delta gave %s", order.site, order.parent.key, written.sha256[:12])
