"""Files of updates: what comes back is what was written, the residual makes up the rest, and foreign files are told."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation import codecs, tensor_stream
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.tensor_stream import Floats, TensorFile
from curtail_pipeline.federation.update_file import UpdateFile, all_pieces, write_update, write_weights
from curtail_pipeline.storage.store import file_sha256

EACH = pytest.mark.parametrize("name", CODECS)
SHAPES = {"embed.weight": (40, 9), "scale": (), "one": (1,), "head.weight": (3, 7), "empty": (0, 4)}


def tensors(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n: np.asarray(scale * random.standard_normal(s), np.float32).reshape(s) for n, s in SHAPES.items()}


class Model:
    """A parent, what a site made of it, and its residual."""

    def __init__(self, folder: Path, seed: int = 1) -> None:
        self.folder, self.parent = folder, folder / "parent.safetensors"
        self.before = tensors(0) | {"steps": np.arange(3)}
        save_file(self.before, self.parent, {"format": "pt"})
        self.after = {n: self.before[n] - d for n, d in tensors(seed, 0.01).items()}
        self.residual = {n: d.ravel().copy() for n, d in tensors(seed + 1, 0.001).items()}

    def write(self, name: str, path: Path | None = None) -> Path:
        def weights(tensor: str, first: int, count: int) -> Floats:
            return self.after[tensor].ravel()[first : first + count]

        path = path or self.folder / f"{name}.safetensors"
        with TensorFile(self.parent) as parent:
            written = write_update(path, CODECS[name], parent, weights, self.residual)
        assert (written.sha256, written.bytes) == (file_sha256(path), path.stat().st_size)
        return path

    def decoded(self, path: Path, name: str) -> dict[str, np.ndarray]:
        found: dict[str, list[np.ndarray]] = {n: [] for n in SHAPES}
        with TensorFile(self.parent) as parent, UpdateFile(path, name, parent) as update:
            for piece in all_pieces(parent):
                if piece.tensor.floating:
                    origin = parent.floats(piece.tensor, piece.first, piece.count)
                    found[piece.tensor.name].append(update.moved(update.raw(piece), piece, origin))
        return {n: np.concatenate([np.empty(0, np.float32), *parts]) for n, parts in found.items()}


@EACH
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(1, 1000), piece=st.sampled_from([256, 512, 1 << 20]))
def test_residual_and_decoded_are_the_movement(tmp_path_factory, name: str, seed: int, piece: int) -> None:
    model = Model(tmp_path_factory.mktemp("model"), seed)
    before = {n: left.copy() for n, left in model.residual.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensor_stream, "PIECE", piece)
        path = model.write(name)
        decoded = model.decoded(path, name)
    for tensor, left in model.residual.items():
        moved = before[tensor] + (model.before[tensor].ravel() - model.after[tensor].ravel())
        np.testing.assert_array_equal(left, moved - decoded[tensor])
    made = model.folder / "made.safetensors"
    write_weights(model.parent, path, name, made)
    for tensor, values in load_file(made).items():
        if tensor == "steps":
            np.testing.assert_array_equal(values, model.before[tensor])
        else:
            np.testing.assert_array_equal(values.ravel(), model.before[tensor].ravel() - decoded[tensor])


@EACH
def test_the_bytes_are_the_same_whatever_the_pieces(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = file_sha256(Model(tmp_path).write(name))
    monkeypatch.setattr(tensor_stream, "PIECE", 256)
    monkeypatch.setattr(codecs, "_CHUNK", 256)
    assert file_sha256(Model(tmp_path).write(name)) == whole


@pytest.mark.parametrize("sync", [True, False])
def test_the_bytes_are_the_same_however_they_are_written(
    tmp_path: Path, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those given as one piece, whose hash and length the writer says, are what a reader finds."""
    values = np.arange(1000, dtype=np.float32)
    monkeypatch.setattr(tensor_stream, "WRITTEN", 33)
    monkeypatch.setattr(tensor_stream, "FLUSHED", 100)
    with tensor_stream.TensorWriter(tmp_path / "file", [("a", "F32", (10, 100))], sync=sync) as out:
        for part in np.split(values, [1, 30, 500]):
            out.write(tensor_stream.from_float32(part, "F32"))
    np.testing.assert_array_equal(load_file(tmp_path / "file")["a"].ravel(), values)
    assert (out.sha256, out.bytes) == (file_sha256(tmp_path / "file"), (tmp_path / "file").stat().st_size)


def test_what_is_lost_comes_with_a_later_update(tmp_path: Path) -> None:
    """A site that stands still after one step delivers all of it in the end."""
    model = Model(tmp_path)
    model.residual = {}
    wanted = {n: model.before[n].ravel() - model.after[n].ravel() for n in SHAPES}
    arrived = {n: np.zeros_like(w) for n, w in wanted.items()}
    for _ in range(60):
        path = model.write("int2_topk")
        for tensor, moved in model.decoded(path, "int2_topk").items():
            arrived[tensor] += moved
        model.after = {n: model.before[n] for n in SHAPES}
    for tensor, moved in wanted.items():
        np.testing.assert_allclose(arrived[tensor], moved, atol=1e-5)


@EACH
def test_weights_that_are_not_finite_are_not_sent(tmp_path: Path, name: str) -> None:
    model = Model(tmp_path)
    model.after["head.weight"][1, 2] = np.nan
    with pytest.raises(FederationError, match="cannot be coded: its values"):
        model.write(name)
    assert not list(tmp_path.glob(f"*{name}*"))


def spoilt(model: Model, case: str) -> Path:
    """A foreign or damaged file of `int2_topk`."""
    path = model.write("int2_topk")
    content = load_file(path)
    with TensorFile(path) as file:
        metadata = dict(file.metadata)
    head = content["head.weight"].copy()
    if case == "scale":
        head[0, 22:24] = [0xC0, 0x7F]  # NaN as bfloat16
    elif case == "infinite":
        head[0, 22:24] = [0x80, 0x7F]
    elif case == "negative":
        head[0, 23] |= 0x80
    elif case == "positions":
        head[0, 3] = head[0, 2]
    elif case == "records":
        head = np.concatenate((head, head))
    elif case == "codec":
        metadata["codec"] = "int3\nerror: all is well"
    elif case == "no codec":
        del metadata["codec"]
    elif case == "no layout":
        metadata["tensors"] = "[" * 10_000
    elif case in ("shape", "huge"):
        wrong = [7, 3] if case == "shape" else [2**40, 2**40]
        metadata["tensors"] = json.dumps(json.loads(metadata["tensors"]) | {"head.weight": ["F32", wrong]})
    elif case == "name":
        content["sc\nale"] = content.pop("scale")
    save_file(content | {"head.weight": head}, path, metadata)
    if case == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    if case == "length":
        path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    return path


@pytest.mark.parametrize(("case", "reason"), [
    ("scale", "tensor head.weight is damaged: a scale"), ("infinite", "tensor head.weight is damaged: a scale"),
    ("negative", "a magnitude of it is negative"), ("positions", "positions do not ascend"),
    ("records", r"bytes of records, not \[1, 31\]"), ("codec", "its codec is int3"), ("no codec", "its codec is fp32"),
    ("no layout", "do not say what it holds"), ("shape", r"is F32 \[7, 3\], not F32 \[3, 7\]"), ("huge", "is F32"),
    ("name", "differ from the parent's"), ("cut", "not a readable"), ("length", "not a readable"),
])  # fmt: skip
def test_a_foreign_or_damaged_file_is_refused_in_a_line(tmp_path: Path, case: str, reason: str) -> None:
    model = Model(tmp_path)
    with pytest.raises(FederationError, match=reason) as told:
        model.decoded(spoilt(model, case), "int2_topk")
    assert "\n" not in str(told.value)


def test_an_update_of_another_model_or_codec_is_refused(tmp_path: Path) -> None:
    model = Model(tmp_path)
    path = model.write("int4")
    with pytest.raises(FederationError, match="its codec is int4, not int8"):
        model.decoded(path, "int8")
    with pytest.raises(FederationError, match="its codec is int4, not fp32"):
        model.decoded(path, "fp32")
