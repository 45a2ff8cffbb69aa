"""The processes that train a model together, one for each device of a site: ranks 0 ... size - 1.

All of them do the same calls in the same order on their own shares (SPMD). Rank 0 is the site's trainer, and tells the
others what comes next (`rank_commands`).
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

from curtail_pipeline.training.rank_commands import Command

LONGEST_WAIT = timedelta(minutes=10)
"""How long a rank waits for another one in the middle of a step."""
RENDEZVOUS = "rendezvous"
"""The file, in a folder that only its owner reads, by which the ranks find each other. No port is opened for it."""


class Ranks:
    """One process alone, which waits for nobody."""

    rank, size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @contextmanager
    def together(self, command: Command) -> Iterator[None]:
        """Around what all ranks do on this command."""
        yield

    @property
    def lost(self) -> bool:
        """Whether there is no more training together."""
        return False

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        """Have on every rank what `source` has in the tensor."""

    def add(self, tensor: torch.Tensor) -> None:
        """Replace the tensor by its sum over the ranks."""

    def close(self) -> None:
        """End the other processes."""


ALONE = Ranks(torch.device("cpu"))


class GroupRanks(Ranks):
    """A process among several; rank 0 of them does not tell the others anything by itself.

    Args:
        folder: where the ranks meet, the same for all.
    """

    def __init__(self, device: torch.device, rank: int, size: int, folder: Path) -> None:
        super().__init__(device)
        self.rank, self.size = rank, size
        for backend in ("GLOO", "NCCL"):  # all ranks are on this machine
            os.environ.setdefault(f"{backend}_SOCKET_IFNAME", "lo")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            init_method=(folder / RENDEZVOUS).as_uri(),
            rank=rank,
            world_size=size,
            timeout=LONGEST_WAIT,
            device_id=device if device.type == "cuda" else None,
        )
        self.mesh = DeviceMesh(device.type, list(range(size)))

    def broadcast(self, tensor: torch.Tensor, source: int) -> None:
        distributed.broadcast(tensor, source)

    def add(self, tensor: torch.Tensor) -> None:
        distributed.all_reduce(tensor)

    def close(self) -> None:
        if distributed.is_initialized():
            distributed.destroy_process_group()
