"""Inner optimiser states in files: as they are, or coded as updates are (`codecs`), with the same metadata.

A mean of squares, by whose root AdamW divides, is coded as its root and read as a square, so that no record gives a
negative one; and no root is read below half of its block's smallest step, or a small one would become 0 and its
parameter jump (arXiv:2309.01507, section 4.1). A single number, such as AdamW's count of steps, stays as it is.

What a codec loses of a state nobody keeps: an update's errors would add up in the weights, while a state forgets its
own, 5 % (Muon, squares) and 20 % (AdamW's means) of what is left in every step.
"""

import json
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast, get_args

import numpy as np
from pydantic import TypeAdapter, ValidationError

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.codecs import CODECS, Codec
from curtail_pipeline.federation.merge_report import WrittenFile
from curtail_pipeline.federation.tensor_stream import (
    FORMAT,
    Floats,
    TensorFile,
    TensorInfo,
    TensorWriter,
    from_float32,
    pieces,
)
from curtail_pipeline.settings.federation_settings import LossyName, StateCodecName
from curtail_pipeline.storage.atomic import replacing

SQUARES: Final = "/exp_avg_sq"
CODED: Final = "U8"
"""Type of records in a file."""
SMALLEST_ROOT: Final[Mapping[LossyName, float]] = {"int8": 1 / 256, "int4": 1 / 16, "int2": 1 / 6}
"""Of the largest one of a block: half of the step between two codes; for `int2` a third of its limit, a half."""

Layout = dict[str, tuple[str, tuple[int, ...]]]
"""Type and shape of each tensor."""
_LAYOUT: Final = TypeAdapter(Layout)


class StateFile:
    """A state open for reading; what the file says of itself decides how.

    Raises:
        FederationError: it is unreadable, or its metadata do not fit its tensors. One line, which does not name the
            site.
    """

    def __init__(self, path: Path) -> None:
        self._file = TensorFile(path)
        try:
            self.codec = _known(self._file.metadata.get("codec", "fp32"))
            self._codec = None if self.codec == "fp32" else CODECS[self.codec]
            self.tensors = [self._decoded(name, held) for name, held in self._file.tensors.items()]
            """What it holds once it is decoded, in the file's order; where in the file is not said."""
        except FederationError:
            self.close()
            raise

    def _decoded(self, name: str, held: TensorInfo) -> TensorInfo:
        if self._codec is None or held.dtype != CODED:
            return held
        dtype, shape = self._layout.get(name, ("", ()))
        count = math.prod(shape)
        if (
            dtype != "F32"
            or min(shape, default=-1) < 0
            or held.shape != (self._codec.blocks(count), self._codec.record)
        ):
            raise FederationError(f"its inner state does not say what its tensor {name} holds")
        return TensorInfo(name, dtype, shape, 0, 4 * count)

    @cached_property
    def _layout(self) -> Layout:
        try:
            return _LAYOUT.validate_json(self._file.metadata.get("tensors", ""))
        except ValidationError:
            raise FederationError("the metadata of its inner state do not say what it holds") from None

    def floats(self, name: str, first: int, count: int) -> Floats:
        """`count` elements from element `first` on, where a block begins, as float32 in a fresh array.

        Raises:
            FederationError: no encoder wrote such a record.
        """
        held, codec = self._file.tensors[name], self._codec
        if codec is None or held.dtype != CODED:
            return self._file.floats(held, first, count)
        raw = self._file.raw(held, first // codec.block * codec.record, codec.blocks(count) * codec.record)
        try:
            values = codec.decode(np.frombuffer(raw, np.uint8).reshape(-1, codec.record), count)
        except FederationError as error:
            raise FederationError(f"tensor {name} of its inner state is damaged: {error}") from error
        return _squared(values, codec) if name.endswith(SQUARES) else values

    def whole(self, tensor: TensorInfo) -> Floats:
        """One of `tensors`; errors as of `floats`."""
        found = np.empty(math.prod(tensor.shape), np.float32)
        for first, count in pieces(tensor):
            found[first : first + count] = self.floats(tensor.name, first, count)
        return found.reshape(tensor.shape)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class StateWriter(TensorWriter):
    """Writes a state; tensors follow each other as in `layout`, each as the pieces that `encoded` gives."""

    def __init__(self, path: Path, codec: StateCodecName, layout: Layout) -> None:
        self._codec = None if codec == "fp32" else CODECS[codec]
        coded = {name: entry for name, entry in layout.items() if self._codec and entry[1]}
        metadata = {"codec": codec, "tensors": json.dumps(coded, separators=(",", ":"), ensure_ascii=False)}
        super().__init__(
            path,
            [
                (name, CODED, (self._codec.blocks(math.prod(shape)), self._codec.record))
                if self._codec and name in coded
                else (name, dtype, shape)
                for name, (dtype, shape) in layout.items()
            ],
            metadata if self._codec else FORMAT,
        )

    def encoded(self, tensor: TensorInfo, values: Floats) -> bytearray | memoryview:
        """The bytes of a piece; may be asked for by several threads.

        Raises:
            FederationError: a value is not finite, or a mean of squares negative.
        """
        if self._codec is None or not tensor.shape:
            return from_float32(values, tensor.dtype)
        if tensor.name.endswith(SQUARES):
            if (values < 0).any():
                raise FederationError(f"tensor {tensor.name} of its inner state, a mean of squares, is negative")
            values = np.sqrt(values)
        try:
            return self._codec.encode(values).data.cast("B")
        except FederationError as error:
            raise FederationError(f"tensor {tensor.name} of its inner state cannot be coded: {error}") from error


def write_state(path: Path, codec: StateCodecName, state: Mapping[str, Floats]) -> WrittenFile:
    """Write a state atomically; the same values in the same order give the same bytes.

    Raises:
        FederationError: as of `StateWriter.encoded`.
    """
    layout: Layout = {name: ("F32", values.shape) for name, values in state.items()}
    with replacing(path) as scratch:
        with StateWriter(scratch, codec, layout) as out:
            for name, values in state.items():
                tensor, flat = TensorInfo(name, "F32", values.shape, 0, 4 * values.size), values.ravel()
                for first, count in pieces(tensor):
                    out.write(out.encoded(tensor, flat[first : first + count]))
        scratch.chmod(0o644)
    return WrittenFile(sha256=out.sha256, bytes=out.bytes)


def read_state(path: Path) -> dict[str, Floats]:
    """A whole state, decoded. Errors as of `StateFile`."""
    with StateFile(path) as file:
        return {tensor.name: file.whole(tensor) for tensor in file.tensors}


def _known(named: str) -> StateCodecName:
    for name in get_args(StateCodecName):
        if name == named:
            return cast(StateCodecName, name)
    raise FederationError(
        f"its inner state is coded by {named.encode('unicode_escape').decode()[:60]}, which is no codec"
    )


def _squared(roots: Floats, codec: Codec) -> Floats:
    """Means of squares; the array is used up."""
    share = SMALLEST_ROOT.get(codec.name)
    if share is not None:
        blocks = np.zeros((codec.blocks(len(roots)), codec.block), np.float32)
        blocks.reshape(-1)[: len(roots)] = roots
        np.maximum(blocks, np.float32(share) * blocks.max(axis=1, keepdims=True), out=blocks)
        roots = blocks.reshape(-1)[: len(roots)]
    roots *= roots
    return roots
