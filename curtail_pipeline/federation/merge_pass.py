"""One pass over all files of a merge: each is read once, and hashed, checked, summed and written on the way.

Pieces are worked on by several threads at a time, the sites one after the other within each, so that memory grows
neither with the model nor with the number of sites. Sums over pieces are taken in their order: the bits depend on the
files alone. A site at fault spoils what the pass has written; the pass then goes on for the checks of the others.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.codecs import Codec
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.merge_report import WrittenFile
from curtail_pipeline.federation.tensor_stream import (
    PIECE,
    Floats,
    TensorFile,
    TensorWriter,
    from_float32,
    in_order,
    to_float32,
)
from curtail_pipeline.federation.update_file import AHEAD, THREADS, Piece, UpdateFile, UpdateWriter, all_pieces
from curtail_pipeline.settings.federation_settings import CodecName
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.store import file_sha256


class Spoilt(Exception):
    """What was written is not to be used."""


class OrderedHash:
    """The sha256 of a file whose pieces several threads read; each waits until those before are hashed."""

    def __init__(self, head: bytes) -> None:
        self._digest, self._next, self._turn = hashlib.sha256(head), 0, threading.Condition()

    def update(self, number: int, data: bytearray) -> None:
        """Take piece `number`."""
        with self._turn:
            self._turn.wait_for(lambda: self._next >= number)
            self._digest.update(data)
            self._next = number + 1
            self._turn.notify_all()

    def release(self) -> None:
        """Let nobody wait any longer."""
        with self._turn:
            self._next = 1 << 62
            self._turn.notify_all()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Update:
    """What a site delivered for a round.

    `tokens` weigh the update; `sha256` is the site's own claim about the file, `parent_sha256` and `round` say what it
    was trained from. By `fp32` the file holds the new weights, by another codec what they moved.
    """

    site: str
    path: Path
    tokens: int
    sha256: str
    parent_sha256: str
    round: int
    codec: CodecName = "fp32"


@dataclass
class Offered:
    """An update that is read."""

    update: Update
    file: UpdateFile
    share: np.float32
    """Weight in the mean."""
    fault: str | None = None
    """Why it cannot be used."""
    squares: float = 0.0
    """Of what it moved, up to the last piece."""

    def __post_init__(self) -> None:
        self._hash = OrderedHash(self.file.file.head) if self.file.in_order else None

    def take(self, number: int, data: bytearray) -> None:
        """Hash piece `number`."""
        if self._hash is not None:
            self._hash.update(number, data)

    def release(self) -> None:
        """Let no thread wait for its turn any longer."""
        if self._hash is not None:
            self._hash.release()

    def sha256(self) -> str:
        """Of the whole file, once every piece was taken; read again where the tensors lie in another order."""
        return self._hash.hexdigest() if self._hash is not None else file_sha256(self.update.path)

    @property
    def norm(self) -> float:
        return float(np.sqrt(self.squares))


@dataclass(frozen=True)
class Outputs:
    """What is written; nothing where `weights` is None."""

    weights: Path | None = None
    outer: Path | None = None
    """New momentum; None to take the mean as it is."""
    buffers: TensorFile | None = None
    """Momentum so far; zero where there is none."""
    lr: float = 1.0
    momentum: float = 0.0
    delta: Path | None = None
    """What was subtracted from the parent's weights, by `codec`; both or none."""
    codec: Codec | None = None
    fragment: Fragment | None = None
    """What the updates hold; all other tensors and their momentum go on as they are."""


@dataclass(frozen=True)
class Passed:
    """What a pass came to."""

    step_norm: float
    """Of the mean."""
    written: dict[str, WrittenFile]
    """By the field of `Outputs`."""


@dataclass(frozen=True)
class _Done:
    """Of one piece."""

    parent: float
    sites: dict[str, float | str]
    """Sum of squares, or what is wrong."""
    step: float
    data: dict[str, bytearray | memoryview]


def square(values: Floats, name: str) -> float:
    """Sum of squares; raises when an element is not finite. The sum is itself the test, so data is read once."""
    total = float(np.dot(values, values))
    if not np.isfinite(total):
        if not np.isfinite(values).all():
            raise FederationError(f"tensor {name} is not finite")
        wide = values.astype(np.float64)
        total = float(np.dot(wide, wide))
    return total


class _Scratch(threading.local):
    """Arrays that a thread uses again for every piece: fresh ones come by page faults, a fifth of a merge's time."""

    def __init__(self) -> None:
        self.values: Floats = np.empty(PIECE, np.float32)
        self.mean: Floats = np.empty(PIECE, np.float32)


class MergePass:
    """See the module. `run` is the whole of it."""

    def __init__(self, parent: TensorFile, offered: Sequence[Offered], outputs: Outputs) -> None:
        self._parent, self._offered, self._out = parent, offered, outputs
        self._writing = outputs.weights is not None
        self._scratch = _Scratch()

    def run(self, accept: Callable[[float], bool]) -> Passed:
        """Read all; what is at fault is noted on the updates.

        Args:
            accept: asked at the end, with the norm of the parent's weights; files appear only if it says so.

        Raises:
            Spoilt: it did not.
            FederationError: the parent's weights are not finite, or a file became unreadable.
        """
        parent_squares = step_squares = 0.0
        with ExitStack() as stack:
            threads = stack.enter_context(ThreadPoolExecutor(THREADS))
            writers, parts = self._writers(stack), all_pieces(self._parent, self._out.fragment)
            for done in in_order(self._piece, parts, threads, THREADS * AHEAD):
                parent_squares += done.parent
                step_squares += done.step
                self._note(done)
                if self._writing:
                    for name, data in done.data.items():
                        writers[name].write(data)
            if not accept(float(np.sqrt(parent_squares))) or (writers and not self._writing):
                raise Spoilt
            for writer in writers.values():
                writer.close()
            written = {name: WrittenFile(sha256=w.sha256, bytes=w.bytes) for name, w in writers.items()}
        return Passed(float(np.sqrt(step_squares)), written)

    def _writers(self, stack: ExitStack) -> dict[str, TensorWriter]:
        parent, out = self._parent, self._out
        tensors = list(parent.tensors.values())
        writers: dict[str, TensorWriter] = {}
        if out.weights is not None:
            scratch = stack.enter_context(replacing(out.weights))
            layout = [(t.name, t.dtype, t.shape) for t in tensors]
            writers["weights"] = stack.enter_context(TensorWriter(scratch, layout))
        if out.outer is not None:
            scratch = stack.enter_context(replacing(out.outer))
            layout = [(t.name, "F32", t.shape) for t in tensors if t.floating]
            writers["outer"] = stack.enter_context(TensorWriter(scratch, layout))
        if out.codec is not None and out.delta is not None:
            scratch = stack.enter_context(replacing(out.delta))
            writers["delta"] = stack.enter_context(UpdateWriter(scratch, out.codec, parent, out.fragment))
        return writers

    def _note(self, done: _Done) -> None:
        for update in self._offered:
            found = done.sites.get(update.update.site, 0.0)
            if isinstance(found, str):
                update.fault = update.fault or found
                self._writing = False
            else:
                update.squares += found

    def _piece(self, piece: Piece) -> _Done:
        try:
            return self._worked(piece)
        except BaseException:
            for update in self._offered:
                update.release()
            raise

    def _worked(self, piece: Piece) -> _Done:
        raw = self._parent.raw(piece.tensor, piece.first, piece.count)
        if not piece.exchanged:
            return self._kept(piece, raw)
        if not piece.tensor.floating:
            sites: dict[str, float | str] = {u.update.site: self._same(u, piece, raw) for u in self._offered}
            return _Done(0.0, sites, 0.0, dict.fromkeys(("weights", "delta")[: 2 if self._out.codec else 1], raw))
        origin = to_float32(raw, piece.tensor.dtype)
        squares = square(origin, piece.tensor.name)
        mean = self._scratch.mean[: piece.count]
        mean.fill(0)
        with np.errstate(over="ignore", invalid="ignore"):
            sites = {update.update.site: self._moved(update, piece, origin, mean) for update in self._offered}
        if not self._writing or any(isinstance(found, str) for found in sites.values()):
            return _Done(squares, sites, 0.0, {})
        return _Done(squares, sites, float(np.dot(mean, mean)), self._made(piece, origin, mean))

    def _kept(self, piece: Piece, raw: bytearray) -> _Done:
        """A piece of another fragment."""
        if not piece.tensor.floating:
            return _Done(0.0, {}, 0.0, {"weights": raw})
        squares = square(to_float32(raw, piece.tensor.dtype), piece.tensor.name)
        data: dict[str, bytearray | memoryview] = {"weights": raw}
        if self._out.outer is not None:
            data["outer"] = from_float32(self._buffer(piece), "F32")
        return _Done(squares, {}, 0.0, data)

    def _buffer(self, piece: Piece) -> Floats:
        """Its momentum, in a fresh array."""
        buffers = self._out.buffers
        if buffers is None:
            return np.zeros(piece.count, np.float32)
        return buffers.floats(buffers.tensors[piece.tensor.name], piece.first, piece.count)

    def _same(self, update: Offered, piece: Piece, raw: bytearray) -> float | str:
        """A tensor that is not trained has to be the parent's."""
        theirs = update.file.raw(piece)
        update.take(piece.number, theirs)
        if theirs == raw:
            return 0.0
        return f"tensor {piece.tensor.name} ({piece.tensor.dtype}) changed; only floating tensors are trained"

    def _moved(self, update: Offered, piece: Piece, origin: Floats, mean: Floats) -> float | str:
        """Add an update's share to the mean; the sum of squares of what it moved, or what is wrong with it."""
        raw = update.file.raw(piece)
        update.take(piece.number, raw)
        if update.fault is not None:
            return 0.0
        try:
            moved = update.file.moved(raw, piece, origin, self._scratch.values)
            squares = square(moved, piece.tensor.name)
        except FederationError as error:
            return str(error)
        if self._writing:
            moved *= update.share
            mean += moved
        return squares

    def _made(self, piece: Piece, origin: Floats, mean: Floats) -> dict[str, bytearray | memoryview]:
        """The bytes of the new files; both arrays are used up."""
        out = self._out
        data: dict[str, bytearray | memoryview] = {}
        step = mean
        if out.outer is not None:
            if out.buffers is not None:
                buffer = self._buffer(piece)
                buffer *= np.float32(out.momentum)
                buffer += mean
            else:
                buffer = mean.copy()
            data["outer"] = from_float32(buffer, "F32")
            step += np.multiply(buffer, np.float32(out.momentum), out=self._scratch.values[: piece.count])
            step *= np.float32(out.lr)
        if out.codec is not None:
            records = out.codec.encode(step)
            data["delta"] = records.data.cast("B")
            out.codec.subtract(records, origin)
        else:
            origin -= step
        data["weights"] = from_float32(origin, piece.tensor.dtype)
        return data
