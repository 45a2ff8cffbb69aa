"""Inner states in files: what is read is near what was written, squares stay usable, and foreign files are told."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation import tensor_stream
from curtail_pipeline.federation.inner_states import SiteInner, merge_states, unusable
from curtail_pipeline.federation.state_file import SQUARES, StateFile, read_state, write_state
from curtail_pipeline.storage.store import file_sha256

LOSSY = ("bf16", "int8", "int4", "int2")
EACH = pytest.mark.parametrize("codec", LOSSY)
LOST = {"bf16": 1e-5, "int8": 2e-4, "int4": 0.02, "int2": 0.25}
"""Largest share of the sum of squares that is lost, of normal values."""


def state(seed: int, width: int = 40) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "adamw/head/step": np.asarray(1 + seed % 97, np.float32),
        "adamw/head/exp_avg": (mean := random.standard_normal((9, width), np.float32) * np.float32(1e-4)),
        f"adamw/head{SQUARES}": np.square(mean) + np.square(random.standard_normal((9, width), np.float32)) * 1e-8,
        "muon/block/momentum_buffer": random.standard_normal((7, width), np.float32),
    }


@EACH
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6), width=st.sampled_from([1, 40, 64, 200]), piece=st.sampled_from([256, 1 << 20]))
def test_what_is_read_is_near_what_was_written(tmp_path_factory, codec, seed: int, width: int, piece: int) -> None:
    path, wanted = tmp_path_factory.mktemp("state") / "state", state(seed, width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_stream, "PIECE", piece)
        written = write_state(path, codec, wanted)
    assert (written.sha256, written.bytes) == (file_sha256(path), path.stat().st_size)
    found = read_state(path)
    assert list(found) == list(wanted) and found["adamw/head/step"] == wanted["adamw/head/step"]
    for name, values in wanted.items():
        assert found[name].shape == values.shape and found[name].dtype == np.float32
        error, root = (np.sqrt if name.endswith(SQUARES) else np.asarray), 256
        lost = (error(found[name]) - error(values)).astype(np.float64)
        room = LOST[codec] if values.size > root else 1.0  # a short block is no sample
        assert np.square(lost).sum() <= room * np.square(error(values).astype(np.float64)).sum()


@EACH
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.floats(0, 12))
def test_a_small_square_neither_becomes_0_nor_negative(tmp_path_factory, codec, seed: int, spread: float) -> None:
    """Its parameter would jump: AdamW divides by the root. A step grows fivefold at most, by `int2`."""
    random = np.random.default_rng(seed)
    squares = (10.0 ** (-spread * random.random(700))).astype(np.float32)
    path = tmp_path_factory.mktemp("state") / "state"
    write_state(path, codec, {f"adamw/head{SQUARES}": squares})
    found = read_state(path)[f"adamw/head{SQUARES}"]
    assert (found > 0).all() and (np.sqrt(found) >= np.sqrt(squares) / 5).all()
    write_state(path, codec, {f"adamw/head{SQUARES}": np.zeros(700, np.float32)})
    assert not read_state(path)[f"adamw/head{SQUARES}"].any()


@pytest.mark.parametrize(("codec", "share"), [("bf16", 0.501), ("int8", 0.255), ("int4", 0.134), ("int2", 0.0695)])
def test_its_size(tmp_path: Path, codec: str, share: float) -> None:
    wanted = {"muon/w/momentum_buffer": np.random.default_rng(0).standard_normal(1 << 20, np.float32)}
    assert write_state(tmp_path / "state", codec, wanted).bytes <= share * (4 << 20)


@EACH
def test_the_average_of_coded_states_is_coded(tmp_path: Path, codec: str) -> None:
    shapes = {"head": (9, 40), "block": (7, 40)}
    save_file({name: np.ones(shape, np.float32) for name, shape in shapes.items()}, tmp_path / "weights")
    states = []
    for number, site in enumerate("ABC"):
        written = write_state(tmp_path / site, codec, state(number))
        states.append(SiteInner(site, tmp_path / site, written.sha256, codec))
    assert unusable(states, tmp_path / "weights") == {}
    shares = {"A": 0.5, "B": 0.25, "C": 0.25}
    merged = merge_states(states[::-1], shares, tmp_path / "merged")
    assert merged == merge_states(states, shares, tmp_path / "again")
    with StateFile(tmp_path / "merged") as file:
        assert file.codec == codec
    averaged = {
        name: np.average([read_state(s.path)[name] for s in states], axis=0, weights=list(shares.values()))
        for name in state(0)
    }
    write_state(tmp_path / "wanted", codec, {name: values.astype(np.float32) for name, values in averaged.items()})
    for name, values in read_state(tmp_path / "wanted").items():
        np.testing.assert_allclose(read_state(tmp_path / "merged")[name], values, rtol=0.02, atol=1e-2)
    plain = SiteInner("D", tmp_path / "D", write_state(tmp_path / "D", "fp32", state(4)).sha256, codec)
    assert unusable([*states, plain], tmp_path / "weights") == {
        "D": f"its inner state is coded by fp32, not by {codec}"
    }


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"codec": "int3\nall is well"}, r"coded by int3\\nall is well, which is no codec"),
        ({"codec": "int2_topk"}, "coded by int2_topk, which is no codec"),
        ({"codec": "int8"}, "do not say what it holds"),
        ({"codec": "int8", "tensors": '{"w": ["F32", [-1, -130]]}'}, "does not say what its tensor w holds"),
        ({"codec": "int8", "tensors": '{"w": ["F32", [1099511627776, 9]]}'}, "does not say what its tensor w holds"),
        ({"codec": "int8", "tensors": '{"v": ["F32", [130]]}'}, "does not say what its tensor w holds"),
    ],
)
def test_a_foreign_file_is_told(tmp_path: Path, metadata: dict[str, str], said: str) -> None:
    save_file({"w": np.zeros((2, 130), np.uint8)}, tmp_path / "state", metadata)
    with pytest.raises(FederationError, match=said):
        StateFile(tmp_path / "state")


def test_a_damaged_record_is_told_by_name(tmp_path: Path) -> None:
    write_state(tmp_path / "state", "int8", {"muon/w/momentum_buffer": np.ones(300, np.float32)})
    records = load_file(tmp_path / "state")["muon/w/momentum_buffer"].copy()
    records[1, :2] = [0x80, 0x7F]  # infinite as bfloat16
    with StateFile(tmp_path / "state") as file:
        metadata = dict(file._file.metadata)
    save_file({"muon/w/momentum_buffer": records}, tmp_path / "state", metadata)
    with pytest.raises(FederationError, match="tensor muon/w/momentum_buffer of its inner state is damaged"):
        read_state(tmp_path / "state")


@pytest.mark.parametrize(("value", "said"), [(np.nan, "not all finite"), (-1.0, "a mean of squares, is negative")])
def test_what_cannot_be_coded_is_not_written(tmp_path: Path, value: float, said: str) -> None:
    with pytest.raises(FederationError, match=said):
        write_state(tmp_path / "state", "int8", {f"adamw/w{SQUARES}": np.full(3, value, np.float32)})
    assert not list(tmp_path.iterdir())
