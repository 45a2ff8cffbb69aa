"""A model over several ranks: replicated (DDP), or each rank with a share of every parameter (FSDP2).

Shares are torch's `DTensor`, rows of the whole; a replicated or lone tensor is its own whole and its own share.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, cast

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from curtail_pipeline.training.presets import place_rotary
from curtail_pipeline.training.ranks import GroupRanks


class Spread(Protocol):
    """A module whose gradients are those of all ranks."""

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Its value on this rank's share; the gradients of a backward pass are means over the ranks."""

    def accumulating(self) -> AbstractContextManager[None]:
        """Around a forward and backward pass that another follows in the same step."""


class Replicated:
    """Each rank has the whole model. Gradients are added up once in a step, while the last backward pass runs."""

    def __init__(self, module: nn.Module, ranks: GroupRanks) -> None:
        device = ranks.device
        self._module = DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            forward_sync_buffers=False,
            gradient_as_bucket_view=True,
            init_sync=False,  # weights come later
        )

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self._module(tokens))

    def accumulating(self) -> AbstractContextManager[None]:
        return cast(AbstractContextManager[None], self._module.no_sync())


class Sharded:
    """Each rank has rows of every parameter, its gradient and its state. A block is whole while it is worked on;
    gradients are shared out after every backward pass, since whole ones would not fit either.

    Args:
        model: on the meta device; it is given memory here, share by share.
        module: what is called, around the model.
    """

    def __init__(self, module: nn.Module, model: nn.Module, ranks: GroupRanks) -> None:
        for layer in cast(nn.ModuleList, model.get_submodule("model.layers")):
            fully_shard(layer, mesh=ranks.mesh)
        fully_shard(module, mesh=ranks.mesh)
        self._module = module
        module.to_empty(device=ranks.device)
        place_rotary(model, ranks.device)

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self._module(tokens))

    def accumulating(self) -> AbstractContextManager[None]:
        return nullcontext()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's share, which shares memory with the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in one piece; where it is sharded every rank has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Of a whole tensor, what this rank has of `like`."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None).to_local()


def share_as(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
