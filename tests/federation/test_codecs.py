"""What a codec keeps, what it loses, and that no record gives anything but finite values."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.codecs import CODECS, KEPT, SMALLEST, Codec

EACH = pytest.mark.parametrize("codec", CODECS.values(), ids=lambda codec: codec.name)
FINITE = st.floats(-(2.0**99), 2.0**99, width=32).map(float)
VALUES = st.one_of(
    arrays(np.float32, st.integers(0, 300), elements=FINITE),  # zeros, denormal numbers and extremes
    st.builds(
        lambda seed, count, scale: (np.random.default_rng(seed).standard_normal(count) * scale).astype(np.float32),
        st.integers(0, 10**6), st.sampled_from([1, 2, 63, 64, 65, 256, 257, 1000]),
        st.sampled_from([1e-20, 1e-3, 1e9]),
    ),
)  # fmt: skip
BOUND = {"bf16": 2**-8, "int8": 1.01 / 128, "int4": 1.01 / 8, "int2": 1.0, "int2_topk": 1.0}
"""Largest error, in largest values of the block."""


@EACH
@settings(max_examples=30, deadline=None)
@given(values=VALUES)
def test_round_trip(codec: Codec, values: np.ndarray) -> None:
    records = codec.encode(values)
    decoded = codec.decode(records, len(values))
    assert records.shape == (codec.blocks(len(values)), codec.record) and decoded.shape == values.shape
    left = values.astype(np.float64) - decoded
    for start in range(0, len(values), codec.block):
        block, lost = values[start : start + codec.block].astype(np.float64), left[start : start + codec.block]
        assert np.abs(lost).max() <= BOUND[codec.name] * np.abs(block).max() + 256 * float(SMALLEST)
        assert np.square(lost).sum() <= 1.01 * np.square(block).sum(), "error feedback needs a contraction"


@EACH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_is_not_finite_is_not_encoded(codec: Codec, bad: float) -> None:
    values = np.ones(300, np.float32)
    values[299] = bad
    with pytest.raises(FederationError, match="not all finite"):
        codec.encode(values)


@EACH
@given(seed=st.integers(0, 10**6), blocks=st.integers(1, 5), spoilt=st.booleans())
def test_any_record_is_finite_or_refused(codec: Codec, seed: int, blocks: int, spoilt: bool) -> None:
    random = np.random.default_rng(seed)
    if spoilt:
        records = codec.encode(random.standard_normal(blocks * codec.block).astype(np.float32))
        records.reshape(-1)[random.integers(records.size)] ^= 1 << random.integers(8)
    else:
        records = random.integers(0, 256, (blocks, codec.record), np.uint8)
    try:
        decoded = codec.decode(records, blocks * codec.block)
    except FederationError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(decoded).all()


@EACH
@settings(max_examples=30, deadline=None)
@given(values=VALUES, cut=st.integers(1, 4))
def test_the_bytes_do_not_depend_on_where_it_is_cut(codec: Codec, values: np.ndarray, cut: int) -> None:
    at = cut * codec.block
    parts = [codec.encode(values[:at]), codec.encode(values[at:])]
    assert np.array_equal(np.concatenate(parts), codec.encode(values))


@pytest.mark.parametrize(("name", "share", "lost"), [
    ("bf16", 1 / 2, 1e-5), ("int8", 1 / 3.9, 6e-5), ("int4", 1 / 7.5, 0.011), ("int2", 1 / 14, 0.12),
    ("int2_topk", 1 / 32, 0.62),
])  # fmt: skip
def test_size_and_error_of_normal_values(name: str, share: float, lost: float) -> None:
    """The error of int2 is that of the best quantiser for a normal distribution, 0.1175 (Max 1960), or below."""
    values = np.random.default_rng(1).standard_normal(1 << 18).astype(np.float32)
    records = CODECS[name].encode(values)
    assert records.nbytes <= share * values.nbytes
    error = values - CODECS[name].decode(records, len(values))
    assert np.dot(error, error) <= lost * np.dot(values, values)


def test_the_largest_are_kept_whatever_they_tie_with() -> None:
    values = np.zeros(512, np.float32)
    values[[3, 200, 255]] = [1, -1, 1]
    values[256:] = 1  # all alike: the first ones are kept
    decoded = CODECS["int2_topk"].decode(CODECS["int2_topk"].encode(values), 512)
    assert decoded[[3, 200, 255]] == pytest.approx([1, -1, 1], rel=5e-3) and np.count_nonzero(decoded[:256]) == 3
    assert np.flatnonzero(decoded[256:]).tolist() == list(range(KEPT))
