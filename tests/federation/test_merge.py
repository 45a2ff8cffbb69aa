"""The outer step against plain dense formulas, its refusals, and its bytes."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save_file as numpy_save
from safetensors.torch import load_file as torch_load
from safetensors.torch import save_file as torch_save

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation import merge as outer_module
from curtail_pipeline.federation import tensor_stream as tensors
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.merge import merge, norm_limit
from curtail_pipeline.federation.merge_pass import Update
from curtail_pipeline.federation.merge_report import MergeReport
from curtail_pipeline.federation.update_file import UpdateFile, all_pieces, write_update, write_weights
from curtail_pipeline.settings.federation_settings import LossyName
from curtail_pipeline.storage.store import file_sha256

SHAPES = {"embed.weight": (5, 3), "scale": (), "head.weight": (3, 7), "empty": (0, 4)}


def save_file(content: dict[str, np.ndarray], path: Path, metadata: dict[str, str] | None = None) -> None:
    numpy_save({name: np.asarray(value) for name, value in content.items()}, path, metadata)


def weights(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {n: (scale * np.asarray(random.standard_normal(s))).astype(np.float32).reshape(s) for n, s in SHAPES.items()}


class Round:
    """A round's files in a folder; `merge` with defaults that a test overrides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parent = folder / "parent.safetensors"
        save_file(weights(0), self.parent, {"format": "pt"})

    def update(self, site: str, tokens: int, content: dict[str, np.ndarray], **changes: object) -> Update:
        path = self.folder / f"{site}.safetensors"
        save_file(content, path, {"format": "pt"})
        fields = {
            "site": site,
            "path": path,
            "tokens": tokens,
            "sha256": file_sha256(path),
            "parent_sha256": file_sha256(self.parent),
            "round": 3,
        }
        return Update(**(fields | changes))

    def merge(
        self, updates: list[Update], mode: str = "federated", name: str = "out", **changes: object
    ) -> MergeReport:
        options = {"lr": 0.7, "momentum": 0.9, "norm_bound": 5.0, "norm_history": [], "outer_path": None} | changes
        outer_path = options.pop("outer_path")
        parent_sha = file_sha256(self.parent)
        return merge(
            self.parent, outer_path, updates, mode, out_weights=self.folder / f"{name}.safetensors",
            out_outer=self.folder / f"{name}-outer.safetensors", parent_sha256=parent_sha, round_index=3, **options,
        )  # fmt: skip

    def out(self, name: str = "out") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        return load_file(self.folder / f"{name}.safetensors"), load_file(self.folder / f"{name}-outer.safetensors")


@pytest.fixture
def round_(tmp_path: Path) -> Round:
    return Round(tmp_path)


def dense(parent, sites, tokens, buffer, lr, momentum):
    """The formula in float64, all at once."""
    total = sum(tokens)
    mean = sum(t / total * (parent.astype(np.float64) - s) for t, s in zip(tokens, sites, strict=True))
    buffer = momentum * buffer.astype(np.float64) + mean
    return parent - lr * (mean + momentum * buffer), buffer


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 10**9), min_size=1, max_size=4),
    lr=st.floats(0.01, 1.5),
    momentum=st.floats(0, 0.99),
    with_buffer=st.booleans(),
    piece=st.sampled_from([1, 2, 4, 1 << 20]),
    seed=st.integers(0, 1000),
)
def test_equals_the_dense_formula(tmp_path_factory, tokens, lr, momentum, with_buffer, piece, seed) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "PIECE", piece)
        round_ = Round(tmp_path_factory.mktemp("round"))
        parent = weights(0)
        sites = [{n: v + 0.1 * d for (n, v), d in zip(parent.items(), weights(seed + i).values(), strict=True)}
                 for i in range(1, len(tokens) + 1)]  # fmt: skip
        updates = [round_.update(f"S{i}", t, c) for i, (t, c) in enumerate(zip(tokens, sites, strict=True))]
        buffer = weights(seed + 99, 0.05) if with_buffer else {n: np.zeros_like(v) for n, v in parent.items()}
        path = round_.folder / "buffer.safetensors"
        save_file(buffer, path)
        report = round_.merge(updates, lr=lr, momentum=momentum, outer_path=path if with_buffer else None)
    new, new_buffer = round_.out()
    assert not report.refused and set(report.accepted) == {u.site for u in updates}
    for name in SHAPES:
        expected, expected_buffer = dense(parent[name], [s[name] for s in sites], tokens, buffer[name], lr, momentum)
        np.testing.assert_allclose(new[name], expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(new_buffer[name], expected_buffer, rtol=1e-5, atol=1e-6)


def test_equals_torch_sgd_nesterov_over_rounds(round_: Round) -> None:
    parameters = {n: torch.nn.Parameter(torch.from_numpy(np.array(v))) for n, v in weights(0).items()}
    optimiser = torch.optim.SGD(parameters.values(), lr=0.7, momentum=0.9, nesterov=True)
    buffer = None
    for number in range(3):
        site = {n: v - 0.1 for n, v in load_file(round_.parent).items()}
        for name, parameter in parameters.items():
            parameter.grad = parameter.detach() - torch.from_numpy(np.asarray(site[name]))
        optimiser.step()
        round_.merge([round_.update("A", 7, site)], name=f"out{number}", outer_path=buffer)
        round_.parent, buffer = (
            round_.folder / f"out{number}.safetensors",
            round_.folder / f"out{number}-outer.safetensors",
        )
    for name, value in load_file(round_.parent).items():
        np.testing.assert_allclose(value, parameters[name].detach().numpy(), rtol=1e-5, atol=1e-6)


def test_bytes_do_not_depend_on_the_order_of_arrival(round_: Round) -> None:
    updates = [
        round_.update(site, tokens, weights(i)) for i, (site, tokens) in enumerate(zip("CAB", (3, 5, 11), strict=True))
    ]
    first = round_.merge(updates, name="one", norm_bound=1e9)
    second = round_.merge(updates[::-1], name="two", norm_bound=1e9)
    assert first.weights == second.weights and first.outer == second.outer
    with tensors.TensorFile(round_.folder / "one.safetensors") as file:
        with safe_open(file.path, framework="numpy") as read:
            assert read.metadata() == {"format": "pt"}, "what transformers asks for"
        with tensors.TensorFile(round_.parent) as parent:
            assert [(t.name, t.shape) for t in file.tensors.values()] == [
                (t.name, t.shape) for t in parent.tensors.values()
            ]


def test_local_takes_the_weights_and_keeps_the_momentum(round_: Round) -> None:
    buffer = round_.folder / "buffer.safetensors"
    save_file(weights(5), buffer)
    report = round_.merge([round_.update("A", 7, weights(1))], mode="local", outer_path=buffer)
    assert report.weights.sha256 == file_sha256(round_.folder / "A.safetensors")
    assert report.outer.sha256 == file_sha256(buffer)
    round_.merge([round_.update("A", 7, weights(1))], mode="local", name="first")
    assert load_file(round_.folder / "first-outer.safetensors") == {}
    # a federated round takes that as momentum zero
    one = round_.merge(
        [round_.update("A", 7, weights(1))], name="x", outer_path=round_.folder / "first-outer.safetensors"
    )
    two = round_.merge([round_.update("A", 7, weights(1))], name="y")
    assert one.weights == two.weights
    with pytest.raises(FederationError, match="mode local takes one update, not those of A, B"):
        round_.merge([round_.update(s, 7, weights(1)) for s in "AB"], mode="local")


def test_zero_valid_updates_keep_weights_and_momentum(round_: Round) -> None:
    buffer = round_.folder / "buffer.safetensors"
    save_file(weights(5), buffer)
    for mode in ("local", "federated"):
        report = round_.merge([round_.update("A", 0, weights(1))], mode=mode, outer_path=buffer)
        assert (report.empty, report.accepted, report.refused) == (("A",), {}, {})
        assert report.weights.sha256 == file_sha256(round_.parent) and report.outer.sha256 == file_sha256(buffer)


def _spoilt(round_: Round) -> dict[str, tuple[Update, str]]:
    good = weights(1)
    nan = {n: v.copy() for n, v in good.items()}
    nan["head.weight"][0, 0] = np.nan
    infinite = {n: v.copy() for n, v in good.items()}
    infinite["scale"] = np.asarray(np.inf, np.float32)
    truncated = round_.update("cut", 4, good)
    truncated.path.write_bytes(truncated.path.read_bytes()[:-4])
    return {
        "nan": (round_.update("nan", 4, nan), "tensor head.weight is not finite"),
        "inf": (round_.update("inf", 4, infinite), "tensor scale is not finite"),
        "parent": (round_.update("parent_", 4, good, parent_sha256="f" * 64), "trained from ffffffffffff, not from"),
        "round": (round_.update("round_", 4, good, round=2), "belongs to round 2, not to round 3"),
        "claim": (round_.update("claim", 4, good, sha256="a" * 64), "do not have the sha256 aaaaaaaaaaaa"),
        "names": (round_.update("names", 4, {n: v for n, v in good.items() if n != "scale"}), "differ.*: scale"),
        "shape": (round_.update("shape", 4, good | {"head.weight": good["head.weight"].T.copy()}), r"F32 \[7, 3\]"),
        "dtype": (round_.update("dtype", 4, good | {"scale": good["scale"].astype(np.float64)}), "is F64"),
        "negative": (round_.update("negative", -4, good), "-4 tokens"),
        "missing": (Update("missing", round_.folder / "no", 4, "", file_sha256(round_.parent), 3), "no are missing"),
        "cut": (replace(truncated, sha256=file_sha256(truncated.path)), "not a readable"),
    }  # fmt: skip


@pytest.mark.parametrize(
    "case", ["nan", "inf", "parent", "round", "claim", "names", "shape", "dtype", "negative", "missing", "cut"]
)
def test_an_invalid_update_is_refused_by_name_and_the_rest_counts(round_: Round, case: str) -> None:
    bad, reason = _spoilt(round_)[case]
    good = round_.update("good", 4, weights(2))
    report = round_.merge([bad, good])
    assert re.search(reason, report.refused[bad.site]), report.refused
    assert list(report.accepted) == ["good"] and report.accepted["good"].share == 1.0
    alone = round_.merge([good], name="alone")
    assert report.weights == alone.weights


def test_norm_bound(round_: Round) -> None:
    parent = load_file(round_.parent)
    small = round_.update("small", 4, {n: v - np.float32(0.01) for n, v in parent.items()})
    large = round_.update("large", 4, {n: v - np.float32(0.2) for n, v in parent.items()})
    usual = [0.01 * np.sqrt(37)] * 5
    report = round_.merge([small, large], norm_history=usual)
    assert list(report.accepted) == ["small"] and "times the other sites'" in report.refused["large"]
    assert report.norm_history == pytest.approx([*usual, usual[0]], rel=1e-4)
    report = round_.merge([small, large], norm_history=usual[:4])  # too few to judge by: the round's own count
    assert report.refused == {"large": "norm 1.217 is above 5 times the other sites' 0.06083"}
    # a round that goes on for longer than those before moves all of its sites further
    assert not round_.merge([large, round_.update("too", 4, {n: v + np.float32(0.2) for n, v in parent.items()})],
                            norm_history=usual).refused  # fmt: skip
    assert norm_limit(5.0, [100.0] * 30 + [1.0] * 20) == 5.0  # only the last 20 count
    assert norm_limit(5.0, [100.0] * 4) == 0.0
    far = round_.update("far", 4, {n: v + np.float32(1e6) for n, v in parent.items()})
    assert round_.merge([far], norm_history=[0.0] * 20).refused  # rounds in which nothing moved are no free pass
    assert len(round_.merge([small], norm_history=[0.05] * 20).norm_history) == outer_module.NORM_WINDOW


def test_norm_bound_in_the_first_rounds(round_: Round) -> None:
    parent = load_file(round_.parent)
    norm = float(np.sqrt(sum(float((v**2).sum()) for v in parent.values())))
    far = {n: v + np.float32(norm * outer_module.PARENT_NORMS / 6) for n, v in parent.items()}
    report = round_.merge([round_.update("far", 4, far)], "local")
    assert "is above the bound" in report.refused["far"] and report.weights.sha256 == file_sha256(round_.parent)
    # whoever trains longer moves further, and that is no reason to refuse
    short = round_.update("short", 4, {n: v - np.float32(0.01) for n, v in parent.items()})
    long = round_.update("long", 40, {n: v - np.float32(0.1) for n, v in parent.items()})
    assert not round_.merge([short, long]).refused
    # a site that did not move says nothing of the others
    assert not round_.merge([round_.update("still", 4, dict(parent)), long]).refused


def test_one_site_twice_and_foreign_momentum_are_errors(round_: Round) -> None:
    update = round_.update("A", 1, weights(1))
    with pytest.raises(FederationError, match="two updates of one site"):
        round_.merge([update, update])
    foreign = round_.folder / "foreign.safetensors"
    save_file({"other": np.zeros(3, np.float32)}, foreign)
    with pytest.raises(FederationError, match="no float32 tensor"):
        round_.merge([update], outer_path=foreign)
    assert not list(round_.folder.glob(".*.tmp")) and not (round_.folder / "out.safetensors").exists()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_bfloat16_is_torchs(values: list[float]) -> None:
    array = np.array(values, np.float32)
    ours = bytes(tensors.from_float32(array, "BF16"))
    theirs = torch.from_numpy(array.copy()).to(torch.bfloat16)
    assert ours == theirs.view(torch.uint8).numpy().tobytes()
    np.testing.assert_array_equal(tensors.to_float32(bytearray(ours), "BF16"), theirs.float().numpy())


def test_bfloat16_and_integer_tensors(tmp_path: Path) -> None:
    parent = {"w": torch.randn(6, 4).to(torch.bfloat16), "h": torch.randn(4).half(), "steps": torch.arange(3)}
    site = parent | {"w": (parent["w"].float() - 0.5).to(torch.bfloat16)}
    for name, content in (("parent", parent), ("A", site), ("B", site | {"steps": torch.arange(1, 4)})):
        torch_save(content, tmp_path / f"{name}.safetensors", {"format": "pt"})
    sha = file_sha256(tmp_path / "parent.safetensors")
    updates = [
        Update(s, tmp_path / f"{s}.safetensors", 8, file_sha256(tmp_path / f"{s}.safetensors"), sha, 0) for s in "AB"
    ]
    report = merge(
        tmp_path / "parent.safetensors", None, updates, "federated", 1.0, 0.0, tmp_path / "w", tmp_path / "o", 5.0, [],
        parent_sha256=sha, round_index=0,
    )  # fmt: skip
    assert "steps (I64) changed" in report.refused["B"]
    new = torch_load(tmp_path / "w")
    assert new["w"].dtype == torch.bfloat16 and torch.equal(new["w"], site["w"])  # lr 1 without momentum: the site's
    assert torch.equal(new["steps"], parent["steps"]) and torch.equal(new["h"], parent["h"])
    assert set(torch_load(tmp_path / "o")) == {"w", "h"}


def coded(
    round_: Round, site: str, codec: LossyName, seed: int, **changes: object
) -> tuple[Update, dict[str, np.ndarray]]:
    """An update by a codec, and what it says was moved."""
    moved = weights(seed, 0.01)
    before = load_file(round_.parent)
    path = round_.folder / f"{site}.{codec}"
    with tensors.TensorFile(round_.parent) as parent:
        write_update(
            path, CODECS[codec], parent, lambda name, at, n: (before[name] - moved[name]).ravel()[at : at + n], {}
        )
        with UpdateFile(path, codec, parent) as update:
            found = {
                piece.tensor.name: update.moved(update.raw(piece), piece, np.zeros(0)).reshape(piece.tensor.shape)
                for piece in all_pieces(parent)
            }
    fields = {"site": site, "path": path, "tokens": 5, "sha256": file_sha256(path), "codec": codec,
              "parent_sha256": file_sha256(round_.parent), "round": 3}  # fmt: skip
    return Update(**(fields | changes)), found | {"empty": np.zeros((0, 4), np.float32)}


@pytest.mark.parametrize("codec", CODECS)
def test_coded_updates_count_as_what_they_decode_to(round_: Round, codec: LossyName) -> None:
    (one, a), (two, b) = coded(round_, "A", codec, 1), coded(round_, "B", codec, 2, tokens=15)
    report = round_.merge([one, two], momentum=0.5)
    assert not report.refused
    parent, (new, _) = load_file(round_.parent), round_.out()
    for name in SHAPES:
        expected, _ = dense(parent[name], [parent[name] - a[name], parent[name] - b[name]], [5, 15],
                            np.zeros_like(parent[name]), 0.7, 0.5)  # fmt: skip
        np.testing.assert_allclose(new[name], expected, rtol=1e-5, atol=1e-6)
    norm = np.sqrt(sum(float((moved.astype(np.float64) ** 2).sum()) for moved in a.values()))
    assert report.accepted["A"].norm == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("codec", CODECS)
def test_local_commits_what_was_decoded(round_: Round, codec: LossyName) -> None:
    update, moved = coded(round_, "A", codec, 1)
    step = round_.folder / "step"
    report = round_.merge([update], mode="local", out_delta=step)
    parent, (new, _) = load_file(round_.parent), round_.out()
    for name in SHAPES:
        np.testing.assert_array_equal(new[name], parent[name] - moved[name])
    written = write_weights(round_.parent, step, codec, round_.folder / "received")
    assert written == report.weights and report.delta.sha256 == update.sha256


@pytest.mark.parametrize("codec", CODECS)
def test_whoever_holds_the_parent_gets_the_same_file_from_the_step(round_: Round, codec: LossyName) -> None:
    updates = [coded(round_, "A", "int2", 1)[0], round_.update("B", 4, weights(0))]
    buffer = round_.folder / "buffer.safetensors"
    save_file(weights(5, 0.01), buffer)
    plain = round_.merge(updates, name="plain", outer_path=buffer)
    report = round_.merge(updates, outer_path=buffer, download=codec, out_delta=round_.folder / "step")
    assert report.outer == plain.outer, "the momentum is that of the exact step"
    written = write_weights(round_.parent, round_.folder / "step", codec, round_.folder / "received")
    assert written == report.weights
    assert report.delta.sha256 == file_sha256(round_.folder / "step")


def test_a_bad_coded_update_is_refused_and_the_rest_counts(round_: Round) -> None:
    good, _ = coded(round_, "good", "int8", 1)
    damaged, _ = coded(round_, "damaged", "int8", 2)
    data = bytearray(damaged.path.read_bytes())
    with tensors.TensorFile(damaged.path) as file:
        data[file.tensors["head.weight"].start : file.tensors["head.weight"].start + 2] = b"\xc0\x7f"
    damaged.path.write_bytes(data)
    far, _ = coded(round_, "far", "int8", 3)
    far = replace(far, tokens=good.tokens)
    other = replace(coded(round_, "other", "int4", 4)[0], codec="int8")
    for bad, reason in (
        (damaged, "do not have the sha256"),
        (replace(damaged, sha256=file_sha256(damaged.path)), "head.weight is damaged: a scale or value of it is not"),
        (other, "its codec is int4, not int8"),
        (replace(far, parent_sha256="f" * 64), "trained from ffff"),
    ):
        report = round_.merge([good, bad])
        assert re.search(reason, report.refused[bad.site]), report.refused
        assert report.weights == round_.merge([good], name="alone").weights


def test_a_file_in_another_order_has_its_hash_checked_all_the_same(round_: Round) -> None:
    path, content = round_.folder / "odd", weights(1)
    with tensors.TensorWriter(
        path, [(name, "F32", content[name].shape) for name in ("head.weight", "scale", "embed.weight", "empty")]
    ) as out:
        for name in ("head.weight", "scale", "embed.weight"):
            out.write(tensors.from_float32(content[name], "F32"))
    update = round_.update("A", 4, content)
    odd = replace(update, path=path, sha256=out.sha256)
    assert round_.merge([odd]).weights == round_.merge([update], name="same").weights
    assert "do not have the sha256" in round_.merge([replace(odd, sha256="a" * 64)]).refused["A"]
