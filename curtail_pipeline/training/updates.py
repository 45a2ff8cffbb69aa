"""What a site sends of a round, and how it comes to the weights of the next: the trainer's side of an exchange.

What a codec left out of a site's updates (the residual) is float32 beside the state of its optimisers, as
`residual/NAME`, so that it is rolled back, kept and replayed with it.
"""

import logging
from collections.abc import Mapping

import torch

from curtail_pipeline.errors import FederationError, TrainingError
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.orders import Order, WrittenFile
from curtail_pipeline.federation.tensor_stream import Floats, TensorFile
from curtail_pipeline.federation.update_file import write_update, write_weights
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.weights import store_tensors

log = logging.getLogger(__name__)

RESIDUAL = "residual/"

Residual = dict[str, Floats]
"""Flat, by name of tensor."""


def split_state(state: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], Residual]:
    """An inner state as what the optimisers remember and the residual."""
    mine = {name: tensor for name, tensor in state.items() if not name.startswith(RESIDUAL)}
    return mine, {name.removeprefix(RESIDUAL): state[name].numpy().copy() for name in state.keys() - mine.keys()}


def joined_state(optimisers: Mapping[str, torch.Tensor], residual: Residual) -> dict[str, torch.Tensor]:
    """What `split_state` splits."""
    return {**optimisers, **{RESIDUAL + name: torch.from_numpy(left) for name, left in residual.items()}}


def store_update(store: Store, order: Order, model: Mapping[str, torch.Tensor], residual: Residual) -> WrittenFile:
    """Write what the order's codec says of trained weights; the residual becomes what this leaves out.

    Raises:
        TrainingError: the weights are not finite.
    """
    if order.codec == "fp32":
        sha256, size = store_tensors(store, order.out, model)
        return WrittenFile(sha256=sha256, bytes=size)

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
        raise TrainingError(f"site {order.site}: {error}; lower the learning rates or the steps of a round") from error


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
