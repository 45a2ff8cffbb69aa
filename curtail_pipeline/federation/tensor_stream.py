"""Reading and writing safetensors files piece by piece, with numpy alone.

The merge of a round runs in Flower's ServerApp, a process that starts anew for every segment, and touches every
parameter of every site once. So it imports no torch, never maps or loads a whole file (a piece at a time through
`pread`), and understands bfloat16, which numpy does not.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypedDict, TypeVar

import numpy as np
import numpy.typing as npt

from curtail_pipeline.errors import FederationError

PIECE = 1 << 20
"""Elements handled at a time."""
AHEAD = 4
"""Pieces that wait to be written."""
FLUSHED = 32 << 20
"""Bytes after which what was written is sent to disk, so that little is left to wait for at the end."""
WRITTEN = 1 << 18
"""Bytes of a call to write. Linux 6.18 takes pages for a whole call at a time, and in a virtual machine that hands free
memory back to its host 4 MiB a call are ten times as slow: 2.0 s for 500 MB, 0.2 s by 256 KiB."""

FORMAT: Final = {"format": "pt"}
"""Metadata that transformers expects in a file of weights."""

Floats = npt.NDArray[np.float32]
T = TypeVar("T")
R = TypeVar("R")

_SIZE = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL"), 1),
}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


class _Entry(TypedDict):
    """A tensor in a safetensors header."""

    dtype: str
    shape: list[int]
    data_offsets: list[int]


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file: its type, shape, and the bytes it takes, counted from the start of the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def count(self) -> int:
        return (self.stop - self.start) // _SIZE[self.dtype]

    @property
    def floating(self) -> bool:
        return self.dtype in FLOATS


class TensorFile:
    """A safetensors file open for reading. The library checks its header; this class reads the pieces.

    Raises:
        FederationError: the file is missing, truncated, not safetensors, or holds a type this module cannot read.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(str(path), framework="numpy"):
                pass  # validates sizes, offsets and overlap
        except (SafetensorError, OSError) as error:
            raise FederationError(f"{path} is not a readable safetensors file ({error}); write it again") from error
        self._fd = os.open(path, os.O_RDONLY)
        size = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        self.head = os.pread(self._fd, 8 + size, 0)
        """All that stands before the first tensor."""
        header: dict[str, _Entry] = json.loads(self.head[8:])
        self.metadata: Mapping[str, str] = json.loads(self.head[8:]).get("__metadata__") or {}
        header.pop("__metadata__", None)
        self.tensors: dict[str, TensorInfo] = {}
        for name, entry in sorted(header.items(), key=lambda item: (item[1]["data_offsets"], item[0])):
            if entry["dtype"] not in _SIZE:
                self.close()
                raise FederationError(f"{path}: tensor {name!r} has type {entry['dtype']}; use {', '.join(_SIZE)}")
            start, stop = entry["data_offsets"]
            shape = tuple(entry["shape"])
            self.tensors[name] = TensorInfo(name, entry["dtype"], shape, 8 + size + start, 8 + size + stop)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> "TensorFile":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def raw(self, tensor: TensorInfo, first: int, count: int) -> bytearray:
        """The bytes of `count` elements from element `first` on."""
        width = _SIZE[tensor.dtype]
        buffer = bytearray(count * width)
        view, offset = memoryview(buffer), tensor.start + first * width
        while view:
            got = os.preadv(self._fd, [view], offset)
            if got == 0:
                raise FederationError(f"{self.path} became shorter while it was read; write it again")
            view, offset = view[got:], offset + got
        return buffer

    def floats(self, tensor: TensorInfo, first: int, count: int) -> Floats:
        """`count` elements from element `first` on, as float32 in a fresh array."""
        return to_float32(self.raw(tensor, first, count), tensor.dtype)


def to_float32(raw: bytearray, dtype: str) -> Floats:
    if dtype == "F32":
        return np.frombuffer(raw, "<f4")
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, {"F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float32)


def from_float32(values: Floats, dtype: str) -> memoryview:
    """The bytes of the values in a floating type, rounded to nearest, ties to even."""
    if dtype == "F32":
        out: npt.NDArray[np.generic] = np.ascontiguousarray(values, "<f4")
    elif dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        out = ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype("<u2")
    else:
        out = values.astype({"F16": "<f2", "F64": "<f8"}[dtype])
    return out.data.cast("B")


def pieces(tensor: TensorInfo) -> Iterator[tuple[int, int]]:
    """(first element, element count) of the tensor's pieces, in order."""
    for first in range(0, tensor.count, PIECE):
        yield first, min(PIECE, tensor.count - first)


def in_order(do: Callable[[T], R], items: Iterable[T], threads: ThreadPoolExecutor, ahead: int) -> Iterator[R]:
    """What `do` gives for each item, in their order; at most so many are begun and not taken yet."""
    begun: deque[Future[R]] = deque()
    for item in items:
        if len(begun) == ahead:
            yield begun.popleft().result()
        begun.append(threads.submit(do, item))
    while begun:
        yield begun.popleft().result()


class TensorWriter:
    """Writes a safetensors file whose tensors follow each other in the given order, and hashes it on the way.

    The same tensors give the same bytes: the header is compact JSON in that order, padded with spaces to 8 bytes.
    Writing and hashing happen in threads of their own, at most `AHEAD` pieces behind. `sha256` and `bytes` are valid
    once the file is closed.

    Args:
        sync: whether it is on disk when it is closed.
    """

    def __init__(
        self,
        path: Path,
        tensors: Iterable[tuple[str, str, tuple[int, ...]]],
        metadata: Mapping[str, str] = FORMAT,
        *,
        sync: bool = True,
    ) -> None:
        header: dict[str, _Entry | Mapping[str, str]] = {"__metadata__": metadata}
        offset = 0
        for name, dtype, shape in tensors:
            size = _SIZE[dtype] * int(np.prod(shape, dtype=np.int64))
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
            offset += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        self.sha256 = ""
        self.bytes = 0
        self._digest = hashlib.sha256()
        self._stream, self._sync, self._unsynced = path.open("wb", buffering=0), sync, 0
        self._writing, self._hashing = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._pending: deque[tuple[Future[int], Future[None]]] = deque()
        self.write(bytearray(len(text).to_bytes(8, "little") + text))

    def write(self, data: bytearray | memoryview) -> None:
        """Take over the data; the caller must not change it afterwards."""
        while len(self._pending) >= AHEAD:
            self._wait()
        self._pending.append((self._writing.submit(self._write, data), self._hashing.submit(self._digest.update, data)))

    def _write(self, data: bytearray | memoryview) -> int:
        view = memoryview(data)
        while view:
            view = view[self._stream.write(view[:WRITTEN]) :]
        self._unsynced += len(data)
        if self._sync and self._unsynced >= FLUSHED:
            os.fdatasync(self._stream.fileno())
            self._unsynced = 0
        return len(data)

    def _wait(self) -> None:
        written, hashed = self._pending.popleft()
        self.bytes += written.result()
        hashed.result()

    def close(self) -> None:
        if self._stream.closed:
            return
        try:
            self._shut_down()
            while self._pending:
                self._wait()
            if self._sync:
                os.fsync(self._stream.fileno())
            self.sha256 = self._digest.hexdigest()
        finally:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self.close()
        else:  # nobody will read it
            self._shut_down(cancel=True)
            self._stream.close()

    def _shut_down(self, cancel: bool = False) -> None:
        for threads in (self._writing, self._hashing):
            threads.shutdown(cancel_futures=cancel)
