"""How few bytes carry what a site moved: values in blocks, each block a record of fixed size.

| codec | values of a block | what a record holds | of float32's bytes |
|---|---|---|---|
| `bf16` | 1 | it, rounded to nearest even | 1/2 |
| `int8`, `int4` | 128, 64 | a scale (bfloat16) and codes, the lowest for the largest value | 1/3.9, 1/7.5 |
| `int2` | 128 | two magnitudes; per value a sign and which of them | 1/14.6 |
| `int2_topk` | 256 | positions of the 22 largest, a byte each, and these as in `int2`; the others are 0 | 1/33 |

The scale has the sign that makes the largest value the lowest code, as llama.cpp's Q4_0; the two magnitudes are fitted
to the block by Lloyd's iteration (S. P. Lloyd, Least squares quantization in PCM, 1982).
What a codec loses a site adds to its next update (error feedback, arXiv:1901.09847). Every record gives finite values
or is refused; values that are not finite, or beyond `LARGEST`, are not encoded.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.tensor_stream import Floats, from_float32, to_float32
from curtail_pipeline.settings.federation_settings import LossyName

Bytes = npt.NDArray[np.uint8]

LARGEST: Final = 1e30
"""The largest value that is encoded: no update of a model comes near, and nothing overflows."""
SMALLEST: Final = np.float32(1e-30)
"""Scales below it are 0, so that nothing is divided by a denormal number."""
KEPT: Final = 22
"""Of the 256 values of a block, by `int2_topk`: as many as 31 bytes hold."""
FIT: Final = 2
"""Rounds of Lloyd's iteration; a third lowers the error by 0.3 % of itself (updates of a 4-layer model)."""
_CHUNK: Final = 1 << 18
"""Values that are worked on at a time, whole blocks of every codec. With fewer, threads wait for the interpreter more
than the cache saves: encoding `int2` takes 1.5 times as long by 1 << 16 on 2 cores, and 1.3 times by 1 << 20."""


@dataclass(frozen=True)
class Codec:
    """Values to records and back. The same values give the same bytes, however they are cut at block boundaries."""

    name: LossyName
    block: int
    """Values in a record."""
    record: int
    """Bytes of it."""

    def blocks(self, count: int) -> int:
        """Records that so many values take; the last one is filled up with zeros."""
        return -(-count // self.block)

    def encode(self, values: Floats) -> Bytes:
        """Records of a flat array, (blocks, record).

        Raises:
            FederationError: a value is not finite, or too large.
        """
        records = np.empty((self.blocks(len(values)), self.record), np.uint8)
        for rows in self._chunks(len(records)):
            part = values[rows.start * self.block : rows.stop * self.block]
            require_encodable(part)
            if len(part) % self.block:
                part = np.concatenate((part, np.zeros(-len(part) % self.block, np.float32)))
            self._encode(part.reshape(-1, self.block), records[rows])
        return records

    def decode(self, records: Bytes, count: int, into: Floats | None = None) -> Floats:
        """The first `count` values of records, in a fresh array, or at the begin of one with room for whole blocks.

        Raises:
            FederationError: no encoder wrote such a record.
        """
        values = np.empty(len(records) * self.block, np.float32) if into is None else into
        for rows in self._chunks(len(records)):
            self._decode(records[rows], values[rows.start * self.block : rows.stop * self.block])
        return values[:count]

    def subtract(self, records: Bytes, values: Floats) -> None:
        """Take what records say off values, a chunk at a time.

        Raises:
            FederationError: no encoder wrote such a record; some may be taken off then.
        """
        decoded = np.empty(min(len(records), self._rows) * self.block, np.float32)
        for rows in self._chunks(len(records)):
            part = values[rows.start * self.block : rows.stop * self.block]
            here = decoded[: (rows.stop - rows.start) * self.block]
            self._decode(records[rows], here)
            part -= here[: len(part)]

    @property
    def _rows(self) -> int:
        """Records of a chunk."""
        return max(1, _CHUNK // self.block)

    def _chunks(self, rows: int) -> Iterator[slice]:
        return (slice(first, min(first + self._rows, rows)) for first in range(0, rows, self._rows))

    def _encode(self, values: Floats, records: Bytes) -> None:
        if self.name == "bf16":
            records[:] = np.frombuffer(from_float32(values, "BF16"), np.uint8).reshape(records.shape)
        elif self.name in ("int8", "int4"):
            _encode_integers(values, records)
        elif self.name == "int2":
            _encode_levels(values, records)
        else:
            _encode_largest(values, records)

    def _decode(self, records: Bytes, values: Floats) -> None:
        if self.name == "bf16":
            values[:] = _bfloat16(records)
        elif self.name in ("int8", "int4"):
            _decode_integers(records, values.reshape(-1, self.block))
        elif self.name == "int2":
            _decode_levels(records, values.reshape(-1, self.block))
        else:
            _decode_largest(records, values.reshape(-1, self.block))
        values += 0  # no -0, which a mean of one update would not have either


CODECS: Final[dict[LossyName, Codec]] = {
    codec.name: codec
    for codec in (
        Codec("bf16", 1, 2),
        Codec("int8", 128, 2 + 128),
        Codec("int4", 64, 2 + 32),
        Codec("int2", 128, 3 + 2 * 16),
        Codec("int2_topk", 256, KEPT + 3 + 2 * 3),
    )
}


def require_encodable(values: Floats) -> None:
    """Refuse what no codec writes; there is at least one value.

    Raises:
        FederationError: a value is not finite, or too large.
    """
    if not max(float(values.max()), -float(values.min())) <= LARGEST:
        raise FederationError(f"its values are not all finite and at most {LARGEST:g}")


def _bfloat16(data: Bytes) -> Floats:
    """Pairs of bytes as values that an encoder may have written."""
    values = to_float32(bytearray(data.tobytes()), "BF16")
    if len(values) and not float(np.abs(values).max()) <= 2 * LARGEST:
        raise FederationError(f"a scale or value of it is not finite, or above {LARGEST:g}")
    return values


def _as_bfloat16(values: Floats) -> tuple[Bytes, Floats]:
    """The bytes of scales, (n, 2), and what they are read as."""
    data = np.frombuffer(from_float32(values, "BF16"), np.uint8)
    return data.reshape(-1, 2), to_float32(bytearray(data.tobytes()), "BF16")


def _encode_integers(values: Floats, records: Bytes) -> None:
    """A scale of the sign that makes the largest value the lowest code; codes from -2^(bits-1) to 2^(bits-1) - 1."""
    width, whole = values.shape[1], records.shape[1] - 2 == values.shape[1]
    lowest = -128 if whole else -8
    high, low = values.max(axis=1), values.min(axis=1)
    scale = np.where(high > -low, high, low) / np.float32(lowest)
    scale[np.abs(scale) < SMALLEST] = 0
    records[:, :2], scale = _as_bfloat16(scale)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    scaled = values * inverse[:, None]
    np.rint(scaled, out=scaled)
    np.clip(scaled, lowest, -lowest - 1, out=scaled)
    if whole:
        records[:, 2:] = scaled.astype(np.int8).view(np.uint8)
    else:
        codes = (scaled.astype(np.int8) - np.int8(lowest)).view(np.uint8)
        records[:, 2:] = codes[:, : width // 2] | codes[:, width // 2 :] << 4


def _decode_integers(records: Bytes, values: Floats) -> None:
    scale, codes, half = _bfloat16(records[:, :2]), records[:, 2:], values.shape[1] // 2
    if codes.shape[1] == values.shape[1]:
        values[:] = codes.view(np.int8)
    else:
        values[:, :half] = codes & 15
        values[:, half:] = codes >> 4
        values -= 8
    values *= scale[:, None]


def _fitted(sizes: Floats) -> tuple[Floats, Floats]:
    """Per row of magnitudes the two, low and high, that stand for them with the least squared error."""
    width, total = np.float32(sizes.shape[1]), np.einsum("ij->i", sizes)
    low = high = total / width
    limit = np.float32(1.2) * high
    for _ in range(FIT):
        above = (sizes > limit[:, None]).astype(np.float32)
        count, part = np.einsum("ij->i", above), np.einsum("ij,ij->i", sizes, above)
        high = np.where(count > 0, part / np.maximum(count, 1), total / width)
        low = np.where(count < width, (total - part) / np.maximum(width - count, 1), high)
        limit = (low + high) / 2
    return low, high


def _encode_levels(values: Floats, records: Bytes) -> None:
    """The high magnitude (bfloat16), the low one as 255ths of it, then a bit per sign and one per magnitude."""
    sizes = np.abs(values)
    low, high = _fitted(sizes)
    high[high < SMALLEST] = 0
    records[:, :2], high = _as_bfloat16(high)
    share = np.divide(low, high, out=np.zeros_like(high), where=high > 0)
    records[:, 2] = np.rint(np.minimum(share, 1) * 255)
    limit = (_low_of(high, records[:, 2]) + high) / 2
    plane = (records.shape[1] - 3) // 2
    records[:, 3 : 3 + plane] = np.packbits(values < 0, axis=1)
    records[:, 3 + plane :] = np.packbits(sizes > limit[:, None], axis=1)


_BITS: Final[Floats] = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32)
_SIGNS: Final[Floats] = 1 - 2 * _BITS
"""For every byte its eight bits, and the signs that they stand for."""


def _low_of(high: Floats, share: Bytes) -> Floats:
    low: Floats = high * (share.astype(np.float32) / np.float32(255))
    return low


def _decode_levels(records: Bytes, values: Floats) -> None:
    high, plane = _bfloat16(records[:, :2]), (records.shape[1] - 3) // 2
    if (high < 0).any():
        raise FederationError("a magnitude of it is negative")
    low = _low_of(high, records[:, 2])
    _each_bit(_BITS, records[:, 3 + plane :], values)
    values *= (high - low)[:, None]
    values += low[:, None]
    values *= _each_bit(_SIGNS, records[:, 3 : 3 + plane], np.empty_like(values))


def _each_bit(table: Floats, data: Bytes, out: Floats) -> Floats:
    """Rows of bytes as rows of what a table has for each byte, faster than unpacked and converted.

    `out` has a value for every bit but the last ones of a row, which may be filling.
    """
    rows, width = out.shape
    if width == 8 * data.shape[1]:
        np.take(table, data, axis=0, mode="clip", out=out.reshape(rows, -1, 8))  # no byte is out of range
    else:
        out[:] = np.take(table, data, axis=0, mode="clip").reshape(rows, -1)[:, :width]
    return out


def _encode_largest(values: Floats, records: Bytes) -> None:
    """Ascending positions of the kept values, then these as `_encode_levels` has them.

    The magnitude's bits with the position in place of the lowest eight are keys without ties, whose largest are the
    same however they are looked for.
    """
    width = values.shape[1]
    keys = np.ascontiguousarray(values).view(np.uint32) & np.uint32(0x7FFFFF00)
    keys |= np.arange(width - 1, -1, -1, dtype=np.uint32)
    largest = np.partition(keys, width - KEPT, axis=1)[:, width - KEPT :]
    positions = np.sort(np.uint8(width - 1) - largest.astype(np.uint8), axis=1)
    records[:, :KEPT] = positions
    _encode_levels(np.take_along_axis(values, positions.astype(np.intp), axis=1), records[:, KEPT:])


def _decode_largest(records: Bytes, values: Floats) -> None:
    positions = records[:, :KEPT]
    if (positions[:, 1:] <= positions[:, :-1]).any():
        raise FederationError("its positions do not ascend")
    values[:] = 0
    kept = np.empty(positions.shape, np.float32)
    _decode_levels(records[:, KEPT:], kept)
    np.put_along_axis(values, positions.astype(np.intp), kept, axis=1)
