"""The average of inner optimiser states: whose order does not matter, and what is not taken in."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.inner_states import SiteInner, merge_states, unusable
from curtail_pipeline.federation.tensor_stream import PIECE
from curtail_pipeline.storage.store import file_sha256

SHAPES = {"head": (3, 5), "block": (7,)}
ZERO = np.zeros(SHAPES["head"], np.float32)


def state(seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    made: dict[str, Any] = {"adamw/head/step": np.float32(1 + seed % 97)}
    for name, shape in SHAPES.items():
        made[f"adamw/{name}/exp_avg"] = 0.1 * random.standard_normal(shape).astype(np.float32)
        made[f"adamw/{name}/exp_avg_sq"] = made[f"adamw/{name}/exp_avg"] ** 2
    return made


def written(folder: Path, site: str, tensors: dict[str, Any]) -> SiteInner:
    path = folder / f"{site}.safetensors"
    save_file({name: np.asarray(value) for name, value in tensors.items()}, path)
    return SiteInner(site, path, file_sha256(path))


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    save_file({name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}, path)
    return path


@given(
    tokens=st.dictionaries(st.sampled_from("ABCDE"), st.integers(1, 10**9), min_size=1), seed=st.integers(0, 2**32 - 1)
)
@settings(max_examples=25, deadline=None)
def test_it_is_the_weighted_mean_in_any_order(tmp_path_factory: Any, tokens: dict[str, int], seed: int) -> None:
    folder = tmp_path_factory.mktemp("states")
    own = {site: state(seed + n) for n, site in enumerate(tokens)}
    states = [written(folder, site, tensors) for site, tensors in own.items()]
    shares = {site: count / sum(tokens.values()) for site, count in tokens.items()}
    merged = merge_states(states, shares, folder / "merged")
    assert merged.sha256 == file_sha256(folder / "merged") and merged.bytes == (folder / "merged").stat().st_size
    for name, values in load_file(folder / "merged").items():
        wanted = np.average([own[site][name] for site in own], axis=0, weights=[shares[site] for site in own])
        np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-6)
    assert merge_states(states[::-1], shares, folder / "again") == merged


def test_states_longer_than_a_piece(tmp_path: Path) -> None:
    values = np.arange(PIECE + 3, dtype=np.float32)
    states = [written(tmp_path, site, {"muon/w/m": values * factor}) for site, factor in (("A", 1), ("B", 3))]
    merge_states(states, {"A": 0.5, "B": 0.5}, tmp_path / "merged")
    np.testing.assert_array_equal(load_file(tmp_path / "merged")["muon/w/m"], values * 2)


@pytest.mark.parametrize("liar", ["A", "C"])
def test_one_that_lies_does_not_speak_for_the_others(tmp_path: Path, weights: Path, liar: str) -> None:
    more = {"adamw/head/another": np.float32(1)}
    states = [written(tmp_path, site, state(1) | (more if site == liar else {})) for site in "ABC"]
    assert unusable(states, weights).keys() == {liar}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"adamw/head/exp_avg": np.full((3, 5), np.nan, np.float32)}, "adamw/head/exp_avg of its inner state is not f"),
        ({"adamw/head/exp_avg": np.ones((5, 3), np.float32)}, "adamw/head/exp_avg of its inner state fits no weight"),
        ({"adamw/tail/exp_avg": np.ones(3, np.float32)}, "adamw/tail/exp_avg of its inner state fits no weight"),
        ({"adamw/block/exp_avg": None, "adamw/block/exp_avg_sq": None}, "its inner state has nothing of block"),
        ({"adamw/head/exp_avg_sq": -np.ones((3, 5), np.float32), "adamw/head/exp_avg": ZERO}, "squares, is negative"),
        ({"adamw/head/step": np.float32(0)}, "adamw/head/step of its inner state is not a number of steps"),
        ({"adamw/head/exp_avg": np.full((3, 5), 9, np.float32)}, "larger than its mean of squares allows"),
        ({"adamw/head/exp_avg_sq": np.full((3, 5), 9, np.float32)}, "the adamw part of its inner state has norm 11.6"),
        ({"muon/block/momentum_buffer": np.full(7, 1e30, np.float32)}, "muon part of its inner state has norm 2.646"),
        ({"adamw/head/step": None}, "adamw/head/step of its inner state is not as the other sites have it"),
    ],
)
def test_what_is_not_of_the_model_is_refused_by_name(
    tmp_path: Path, weights: Path, change: dict[str, Any], said: str
) -> None:
    odd = {name: value for name, value in (state(2) | change).items() if value is not None}
    states = [written(tmp_path, "A", state(1)), written(tmp_path, "B", odd), written(tmp_path, "C", state(3))]
    refused = unusable(states, weights, grad_clip=1.0)
    assert refused.keys() == {"B"} and said in refused["B"]


def test_a_state_is_what_its_site_says_it_is(tmp_path: Path, weights: Path) -> None:
    good = written(tmp_path, "A", state(1))
    assert unusable([good], weights) == {}
    assert "does not have the sha256" in unusable([SiteInner("A", good.path, "0" * 64)], weights)["A"]
    with pytest.raises(FederationError, match="no inner state to merge"):
        merge_states([], {}, tmp_path / "none")
