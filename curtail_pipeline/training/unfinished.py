"""A round that is under way, on disk: what a trainer that was killed in the middle of it goes on from.

Every `federation.snapshot_minutes` weights, optimiser state and what was done so far are copied and, by a thread of its
own, written to a folder of the site on its machine. Training stands still for the copy alone: on a GPU it goes to
pinned memory, in its turn among the device's work, and the host does not wait for it. What is written counts only for
the same work (`work_name`), whichever order asks for it: it goes on to the bits of a round that nobody disturbed.
"""

import hashlib
import logging
import shutil
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import torch

from curtail_pipeline.errors import CurtailError
from curtail_pipeline.federation.orders import Loss, Order
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.atomic import write_whole
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.records import Message, Sha256
from curtail_pipeline.storage.store import canonical_json
from curtail_pipeline.tokens.ranges import Range, is_prefix, take_prefix
from curtail_pipeline.training.learner import Learner
from curtail_pipeline.training.weights import read_tensors, write_tensors

log = logging.getLogger(__name__)

RECORD = "unfinished.json"


class Unfinished(Message):
    """What was done of a round."""

    work: Sha256
    """`work_name`."""
    tensors: Sha256
    """Of the file with weights and state."""
    consumed: tuple[Range, ...]
    losses: tuple[Loss, ...]
    """Of each step."""
    seconds: float
    """Of training."""


def work_name(
    order: Order, began: tuple[str, str], site: Site, experiment: str, config: str, made_with: Mapping[str, str]
) -> str:
    """A hash of all that the bits of a round depend on, but its length and the ranges that it goes on to.

    Args:
        began: the inner state and what was left out of updates, as it really began with them.
        experiment: sha256 of its identity.
        config: sha256 of the model's.
        made_with: what the site works with.
    """
    asked = order.model_dump(mode="json", include={"first_step", "members", "total_steps", "seed"})
    computer = site.model_dump(mode="json", include={"name", "device", "devices", "parallel", "threads"})
    inner_state, residual = began
    start = [order.parent.sha256, inner_state, experiment, config, *([order.own.sha256] if order.own else [])]
    start += [residual] if order.goes_on else []
    return hashlib.sha256(canonical_json([asked, computer, start, dict(made_with)])).hexdigest()


class UnfinishedRounds:
    """Those of a site; there is one at a time, and none in a replay.

    Args:
        folder: of the site, which nothing else uses.
        every_s: seconds of training between two snapshots; none are made when not given.
    """

    def __init__(self, folder: Path, every_s: float | None) -> None:
        self._folder, self._every_s = folder, every_s
        self._host: dict[str, torch.Tensor] = {}
        self._pins = True
        self._writer: threading.Thread | None = None
        self._guard = threading.Lock()
        self._work: str | None = None
        """What is under way; nothing else is written."""
        self._lease: tuple[Range, ...] = ()
        self._due_s = 0.0

    def begin(self, work: str, order: Order, learner: Learner) -> Unfinished | None:
        """What was done of this work already, to which the learner is brought; what there is of other work goes."""
        if self._work is not None and self._writer is not None:  # a lost rank ended that round: its snapshot counts
            self._writer.join()
        self._work = None  # of no other round a step may be noted as one of its own
        if order.replay:
            return None
        found = self._find(work, order)
        if found is None:
            self._remove()
        else:
            done, tensors = found
            source = f"the snapshot after step {len(done.losses)}"
            learner.load_weights(_under("weights/", tensors), source)
            learner.load_state(_under("state/", tensors), source)
            log.info("%s of %s goes on from %s", order.key, order.site, source)
        self._work, self._lease = work, order.lease
        self._due_s = (found[0].seconds if found else 0.0) + (self._every_s or 0.0)
        return found[0] if found else None

    def _find(self, work: str, order: Order) -> tuple[Unfinished, dict[str, torch.Tensor]] | None:
        path = self._folder / RECORD
        if not path.exists():
            return None
        try:
            done = Unfinished.read(path.read_bytes(), str(path))
            if done.work != work or not is_prefix(done.consumed, order.lease) or len(done.losses) > order.max_steps:
                return None
            return done, read_tensors(FolderStore(self._folder), f"{done.tensors}.safetensors", done.tensors)
        except (CurtailError, OSError) as error:
            log.warning("%s of %s is begun anew: %s", order.key, order.site, error)
            return None

    def note(self, learner: Learner, seconds: float, losses: list[float], sequences: int) -> None:
        """After a step: take a snapshot if it is time for one and the one before is written.

        Args:
            learner: as the step left it.
            seconds: of training so far.
            losses: of each step.
            sequences: that they took.
        """
        if self._work is None or self._every_s is None or seconds < self._due_s:
            return
        if self._writer is not None and self._writer.is_alive():
            return
        begin, self._due_s = time.perf_counter(), seconds + self._every_s
        copied = self._copy(learner)
        taken = Unfinished(
            work=self._work,
            tensors="0" * 64,
            consumed=tuple(take_prefix(self._lease, sequences)),
            losses=tuple(losses),
            seconds=seconds,
        )
        self._writer = threading.Thread(target=self._write, args=(taken, copied), name="snapshot", daemon=True)
        self._writer.start()
        log.info("snapshot after step %d: training stood still for %.3f s", len(losses), time.perf_counter() - begin)

    def _copy(self, learner: Learner) -> torch.cuda.Event | None:
        """Bring what there is to the host's memory; what to wait for until it is there."""
        tensors = {f"weights/{name}": tensor.detach() for name, tensor in learner.weights().items()}
        tensors |= {f"state/{name}": tensor for name, tensor in learner.state().items()}
        before, self._host = self._host, {}
        for name, tensor in tensors.items():
            room = before.get(name)
            if room is None or room.shape != tensor.shape:
                room = self._room(tensor, pinned=tensor.device.type == "cuda")
            self._host[name] = room.copy_(tensor, non_blocking=True)
        if all(tensor.device.type == "cpu" for tensor in tensors.values()):
            return None
        event = torch.cuda.Event()
        event.record()
        return event

    def _room(self, tensor: torch.Tensor, *, pinned: bool) -> torch.Tensor:
        """The host's memory for a copy: pinned where the host gives it, which has less of that than of other memory."""
        if pinned and self._pins:
            try:
                return torch.empty_like(tensor, device="cpu", pin_memory=True)
            except RuntimeError as error:  # also torch.OutOfMemoryError and torch.AcceleratorError
                self._pins = False
                log.warning(
                    "snapshots take memory that is not pinned, and training waits for each copy: %s",
                    str(error).partition("\n")[0],
                )
        return torch.empty_like(tensor, device="cpu")

    def _write(self, taken: Unfinished, copied: torch.cuda.Event | None) -> None:
        begin, new = time.perf_counter(), self._folder / f".{uuid.uuid4().hex}.tmp"
        try:
            if copied is not None:
                copied.synchronize()
            sha256 = write_tensors(new, self._host)
            with self._guard:
                if taken.work != self._work:
                    new.unlink()
                    return
                named = new.replace(self._folder / f"{sha256}.safetensors")
                record = taken.model_copy(update={"tensors": sha256})
                write_whole(self._folder / RECORD, record.model_dump_json(by_alias=True).encode())
                for path in self._folder.glob("*.safetensors"):
                    if path != named:
                        path.unlink()
            log.info("snapshot after step %d written in %.3f s", len(taken.losses), time.perf_counter() - begin)
        except OSError as error:
            if taken.work == self._work:  # else its folder is gone
                log.error("no snapshot: %s", error)

    def end(self) -> None:
        """The round is over: remove what there is of it."""
        if self._work is not None:
            self._remove()

    def _remove(self) -> None:
        with self._guard:
            self._work = None
            shutil.rmtree(self._folder, ignore_errors=True)


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
