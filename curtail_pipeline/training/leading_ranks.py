"""Rank 0 of a site's training: starts the processes of the other devices, tells them what to do, and ends them."""

import logging
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch.distributed import distributed_c10d

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.training.rank_commands import Command, Told
from curtail_pipeline.training.rank_process import LONGEST_ENDING_S, READY
from curtail_pipeline.training.ranks import GroupRanks

log = logging.getLogger(__name__)

NOTICED_S = 2 * LONGEST_ENDING_S
"""How long after a failed exchange the end of the process that caused it may take to be seen."""


class RankLost(TrainingError):
    """A process of a site's training ended before its time."""


class _Child:
    """The process of a rank."""

    def __init__(self, rank: int, size: int, device: torch.device, folder: Path) -> None:
        self.rank, self.device = rank, device
        words = {"--rank": rank, "--size": size, "--device": device, "--folder": folder}
        command = [sys.executable, "-m", "curtail_pipeline.training.rank_process"]
        command += [str(word) for pair in words.items() for word in pair]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def wait_until_ready(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            if line.strip() == READY:
                return
        raise RankLost(f"{self} ended before it was ready (code {self.process.wait()}); its log says why")

    def tell(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(line)
        self.process.stdin.flush()

    def end(self) -> None:
        """Wait until it has ended by itself, or end it."""
        assert self.process.stdin and self.process.stdout
        with suppress(OSError):  # it is gone
            self.process.stdin.close()
        try:
            self.process.wait(2 * LONGEST_ENDING_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()

    def __str__(self) -> str:
        return f"the process {self.process.pid} of device {self.rank + 1} ({self.device})"


class LeadingRanks(GroupRanks):
    """The ranks of a site, seen from its trainer. A process has one such group at a time.

    Args:
        devices: of the ranks, the trainer's own first.

    Raises:
        RankLost: one of the processes does not start.
    """

    def __init__(self, devices: list[torch.device]) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="curtail-ranks-"))
        self._closed = False
        self._children = [
            _Child(rank, len(devices), device, self._folder) for rank, device in enumerate(devices) if rank
        ]
        try:
            for child in self._children:
                child.wait_until_ready()
            super().__init__(devices[0], 0, len(devices), self._folder)
        except BaseException:
            self.close()
            raise
        for child in self._children:
            threading.Thread(target=self._watch, args=(child,), name=f"rank {child.rank}", daemon=True).start()

    @property
    def lost(self) -> bool:
        return self._closed

    @contextmanager
    def together(self, command: Command) -> Iterator[None]:
        """Tell the others, and find out whether they came through; if one did not there are no ranks any more.

        Raises:
            RankLost: one has ended.
        """
        self._require_all()
        line = Told(command=command).model_dump_json(by_alias=True) + "\n"
        try:
            for child in self._children:
                child.tell(line)
            yield
        except TrainingError:  # found by all of them alike
            raise
        except BaseException:  # the others may wait for what this rank does not do any more
            deadline = time.monotonic() + NOTICED_S
            while time.monotonic() < deadline and all(child.process.poll() is None for child in self._children):
                time.sleep(0.05)
            self._require_all()
            self.close()
            raise
        self._require_all()

    def _require_all(self) -> None:
        ended = [child for child in self._children if child.process.poll() is not None]
        if not ended:
            return
        self.close()
        raise RankLost(
            f"{ended[0]} ended (code {ended[0].process.returncode}) while {self.size} devices trained together; the "
            "trainer's log says why, nothing of the round is kept: send the order again"
        )

    def _watch(self, child: _Child) -> None:
        """Drain what it says, and let this rank not wait for it for ever once it has ended."""
        assert child.process.stdout
        with suppress(ValueError):  # closed
            for line in child.process.stdout:
                log.info("rank %d: %s", child.rank, line.rstrip())
        child.process.wait()
        if not self._closed and self.device.type == "cuda":  # gloo notices by itself
            log.error("%s ended", child)
            distributed_c10d._get_default_group().abort()

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for child in self._children:
            assert child.process.stdin
            with suppress(OSError):
                child.process.stdin.close()
        super().close()
        for child in self._children:
            child.end()
        shutil.rmtree(self._folder, ignore_errors=True)
