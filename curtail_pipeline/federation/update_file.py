"""What was subtracted from weights, in a file: a site's update, or the step of a merge.

With the codec `fp32` it is the new weights themselves. With any other a safetensors file that every reader of the
format opens: a floating tensor is uint8 of shape (blocks, bytes of a record) under its own name, any other is as it
was. The metadata say the `codec`, and in `tensors` the type and shape of what was coded, by name; in `fragment` which
one the file is of, where it has no other tensors (`fragments`).
"""

import json
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import numpy as np
from pydantic import TypeAdapter, ValidationError

from curtail_pipeline.cores import usable_cores
from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.codecs import CODECS, Bytes, Codec, require_encodable
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.merge_report import WrittenFile
from curtail_pipeline.federation.tensor_stream import (
    Floats,
    TensorFile,
    TensorInfo,
    TensorWriter,
    from_float32,
    in_order,
    pieces,
    to_float32,
)
from curtail_pipeline.settings.federation_settings import CodecName
from curtail_pipeline.storage.atomic import replacing

THREADS: Final = min(usable_cores(), 8)
"""That code or merge; each holds a few pieces in memory."""
AHEAD: Final = 2
"""Pieces per thread that are begun and not written yet."""

Layout = dict[str, tuple[str, tuple[int, ...]]]
_LAYOUT: Final = TypeAdapter(Layout)
Weights = Callable[[str, int, int], Floats]
"""Where new weights are read from: a tensor's name, the first element, and how many."""


@dataclass(frozen=True)
class Piece:
    """A part of a tensor of the weights that an update belongs to."""

    number: int
    """Counted over what updates hold; -1 where they do not hold it."""
    tensor: TensorInfo
    first: int
    count: int

    @property
    def exchanged(self) -> bool:
        """Whether updates hold it."""
        return self.number >= 0


def all_pieces(weights: TensorFile, fragment: Fragment | None = None) -> Iterator[Piece]:
    """Of a whole file, in its order.

    Args:
        fragment: what updates hold; everything if None.
    """
    number, held = 0, held_tensors(weights, fragment)
    for tensor in weights.tensors.values():
        for first, count in pieces(tensor):
            if tensor.name in held:
                yield Piece(number, tensor, first, count)
                number += 1
            else:
                yield Piece(-1, tensor, first, count)


def held_tensors(weights: TensorFile, fragment: Fragment | None) -> dict[str, TensorInfo]:
    """Those that updates hold, in the order of the weights."""
    if fragment is None:
        return weights.tensors
    names = fragment.names(weights.tensors.values())
    return {name: tensor for name, tensor in weights.tensors.items() if name in names}


def _filled(tensors: Mapping[str, TensorInfo]) -> list[str]:
    return [tensor.name for tensor in tensors.values() if tensor.count]


def _shown(text: str) -> str:
    """What a file says, fit for a line."""
    return text.encode("unicode_escape").decode()[:60]


class UpdateFile:
    """An update open for reading, piece by piece of the weights it belongs to.

    Raises:
        FederationError: it is unreadable, of another codec, or its tensors are not those of `parent`. One line, which
            does not name the site.
    """

    def __init__(self, path: Path, codec: CodecName, parent: TensorFile) -> None:
        self.file = TensorFile(path)
        self.codec = None if codec == "fp32" else CODECS[codec]
        self.fragment: Fragment | None = None
        try:
            if self.codec is not None and (named := self.file.metadata.get("fragment")) is not None:
                self.fragment = Fragment.parse(named)
            ours = held_tensors(parent, self.fragment)
            self._require(codec, ours)
        except FederationError:
            self.close()
            raise
        self.in_order = _filled(self.file.tensors) == _filled(ours)
        """Whether its tensors follow each other as the parent's do."""

    def _require(self, codec: CodecName, held: Mapping[str, TensorInfo]) -> None:
        named = self.file.metadata.get("codec", "fp32")
        if named != codec:
            raise FederationError(f"its codec is {_shown(named)}, not {codec}")
        if self.file.tensors.keys() != held.keys():
            odd = sorted(self.file.tensors.keys() ^ held.keys())
            of = f", fragment {self.fragment}" if self.fragment else ""
            raise FederationError(f"its tensors differ from the parent's{of}: {', '.join(map(_shown, odd[:3]))}")
        coded = self._layout()
        for name, ours in held.items():
            theirs = self.file.tensors[name]
            found = coded.get(name, (theirs.dtype, theirs.shape))
            if found != (ours.dtype, ours.shape):
                said = _shown(f"{found[0]} {[*found[1]]}")
                raise FederationError(f"tensor {name} is {said}, not {ours.dtype} {[*ours.shape]}")
            records = (self.codec.blocks(ours.count), self.codec.record) if self.codec and ours.floating else None
            if records and (theirs.dtype, theirs.shape) != ("U8", records):
                raise FederationError(f"tensor {name} has {[*theirs.shape]} bytes of records, not {[*records]}")

    def _layout(self) -> Layout:
        if self.codec is None:
            return {}
        try:
            return _LAYOUT.validate_json(self.file.metadata.get("tensors", ""))
        except ValidationError:
            raise FederationError("its metadata do not say what it holds") from None

    def raw(self, piece: Piece) -> bytearray:
        """The bytes of a piece."""
        entry = self.file.tensors[piece.tensor.name]
        if self.codec is None or not piece.tensor.floating:
            return self.file.raw(entry, piece.first, piece.count)
        first, count = piece.first // self.codec.block, self.codec.blocks(piece.count)
        return self.file.raw(entry, first * self.codec.record, count * self.codec.record)

    def moved(self, raw: bytearray, piece: Piece, origin: Floats, scratch: Floats | None = None) -> Floats:
        """What is subtracted from `origin`: in the array of `raw`, in `scratch` with room for `PIECE` values, or in a
        fresh one.

        Raises:
            FederationError: the bytes are damaged.
        """
        if self.codec is None:
            weights = to_float32(raw, piece.tensor.dtype)
            return np.subtract(origin, weights, out=weights)
        with _damaged(piece):
            return self.codec.decode(_records(raw, self.codec), piece.count, scratch)

    def holds(self, piece: Piece) -> bool:
        """Whether the piece is of its fragment."""
        return piece.tensor.name in self.file.tensors

    def subtract(self, piece: Piece, origin: Floats) -> None:
        """Make new weights of what they moved from, in place; the codec is not `fp32`.

        Raises:
            FederationError: the update is damaged.
        """
        assert self.codec is not None
        with _damaged(piece):
            self.codec.subtract(_records(self.raw(piece), self.codec), origin)

    def close(self) -> None:
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _records(raw: bytearray, codec: Codec) -> Bytes:
    return np.frombuffer(raw, np.uint8).reshape(-1, codec.record)


@contextmanager
def _damaged(piece: Piece) -> Iterator[None]:
    try:
        yield
    except FederationError as error:
        raise FederationError(f"tensor {piece.tensor.name} is damaged: {error}") from error


class UpdateWriter(TensorWriter):
    """Writes the file of a codec for weights with the tensors of `parent`, or those of a fragment, in their order."""

    def __init__(self, path: Path, codec: Codec, parent: TensorFile, fragment: Fragment | None = None) -> None:
        held = held_tensors(parent, fragment).values()
        coded = {t.name: (t.dtype, t.shape) for t in held if t.floating}
        layout = json.dumps(coded, separators=(",", ":"), ensure_ascii=False)
        super().__init__(
            path,
            [
                (t.name, "U8", (codec.blocks(t.count), codec.record)) if t.floating else (t.name, t.dtype, t.shape)
                for t in held
            ],
            {"codec": codec.name, "tensors": layout, **({"fragment": str(fragment)} if fragment else {})},
        )


def write_update(
    path: Path,
    codec: Codec,
    parent: TensorFile,
    weights: Weights,
    residual: MutableMapping[str, Floats],
    fragment: Fragment | None = None,
) -> WrittenFile:
    """Write how far weights are from their parent, with what earlier updates left out of it.

    Args:
        weights: the floating ones.
        residual: flat, by name of tensor, zero for a name that is not there; replaced by what this update leaves out:
            `(residual + (parent - weights)) - decoded`, each step rounded to float32.
        fragment: of which tensors; of the others everything is left out.

    Raises:
        FederationError: a value is not finite.
    """
    for tensor in parent.tensors.values():
        if tensor.floating and tensor.name not in residual:
            residual[tensor.name] = np.zeros(tensor.count, np.float32)

    def coded(piece: Piece) -> bytearray | memoryview:
        tensor, first, count = piece.tensor, piece.first, piece.count
        if not tensor.floating:
            return parent.raw(tensor, first, count) if piece.exchanged else bytearray()
        left = residual[tensor.name][first : first + count]
        moved = parent.floats(tensor, first, count)
        moved -= weights(tensor.name, first, count)
        left += moved
        try:
            if not piece.exchanged:
                require_encodable(left)
                return bytearray()
            records = codec.encode(left)
        except FederationError as error:
            raise FederationError(f"tensor {tensor.name} cannot be coded: {error}") from error
        codec.subtract(records, left)
        return records.data.cast("B")

    with replacing(path) as scratch, ThreadPoolExecutor(THREADS) as threads:
        with UpdateWriter(scratch, codec, parent, fragment) as out:
            for data in in_order(coded, all_pieces(parent, fragment), threads, THREADS * AHEAD):
                out.write(data)
        scratch.chmod(0o644)
    return WrittenFile(sha256=out.sha256, bytes=out.bytes)


def write_weights(parent_path: Path, update_path: Path, codec: CodecName, out_path: Path) -> WrittenFile:
    """Write the weights that an update makes of its parent: the same bytes wherever it is done.

    Raises:
        FederationError: the update does not belong to the parent, or is damaged.
    """
    return write_start(parent_path, update_path, codec, {}, out_path)


def write_start(
    parent_path: Path, update_path: Path | None, codec: CodecName, left: Mapping[str, Floats], out_path: Path
) -> WrittenFile:
    """Write `(parent - update) - left`, each step rounded to float32.

    Args:
        update_path: none to subtract what is left alone.
        left: flat, by name of tensor; nothing for a name that is not there.

    Raises:
        FederationError: the update or what is left does not belong to the parent, or the former is damaged.
    """
    with ExitStack() as stack:
        parent = stack.enter_context(TensorFile(parent_path))
        update = stack.enter_context(UpdateFile(update_path, codec, parent)) if update_path else None
        scratch = stack.enter_context(replacing(out_path))
        threads = stack.enter_context(ThreadPoolExecutor(THREADS))
        _require_left(left, parent)

        def made(piece: Piece) -> bytearray | memoryview:
            tensor, first, count = piece.tensor, piece.first, piece.count
            held, rest = update is not None and update.holds(piece), left.get(tensor.name)
            if update is not None and held and (update.codec is None or not tensor.floating):
                return update.raw(piece)
            if not tensor.floating or not (held or rest is not None):
                return parent.raw(tensor, first, count)
            origin = parent.floats(tensor, first, count)
            if update is not None and held:
                update.subtract(piece, origin)
            if rest is not None:
                origin -= rest[first : first + count]
            return from_float32(origin, tensor.dtype)

        with TensorWriter(scratch, [(t.name, t.dtype, t.shape) for t in parent.tensors.values()]) as out:
            for data in in_order(made, all_pieces(parent), threads, THREADS * AHEAD):
                out.write(data)
        scratch.chmod(0o644)
    return WrittenFile(sha256=out.sha256, bytes=out.bytes)


def _require_left(left: Mapping[str, Floats], parent: TensorFile) -> None:
    for name, values in left.items():
        tensor = parent.tensors.get(name)
        if tensor is None or tensor.count != values.size:
            raise FederationError(f"what updates left out of tensor {_shown(name)} is of other weights")
