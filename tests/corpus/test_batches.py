"""Shards to batches: every token once per pass, a pure function of ranges and seed, no copies on the way to torch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from corpus_texts import SHARES, build_shards, built_store
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail_pipeline.corpus import block_digests
from curtail_pipeline.corpus.batches import HeldoutReader, ShardReader, TokenSet
from curtail_pipeline.corpus.permutation import Permutation
from curtail_pipeline.errors import CorpusError, LedgerError
from curtail_pipeline.storage.folder_store import FolderStore

LENGTH = 32


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    """Shards in files of 5,000 tokens, so that sequences cross from one to the next."""
    return built_store(tmp_path_factory.mktemp("reader"), shard_tokens=5000)[1]


def all_tokens(store: FolderStore, target: str) -> np.ndarray:
    tokens = TokenSet(store, target)
    out = np.empty((1, tokens.n_tokens), dtype=np.int64)
    tokens.fill(out, np.array([0]))
    return out[0]


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**63 - 1), st.integers(1, 9))
def test_a_permutation_is_a_bijection_that_its_key_chooses(n: int, seed: int, epoch: int) -> None:
    shuffled = Permutation(n, seed, "A", epoch)(np.arange(n))
    assert np.array_equal(np.sort(shuffled), np.arange(n))
    assert np.array_equal(shuffled, Permutation(n, seed, "A", epoch)(np.arange(n)))
    if n > 100:
        other = Permutation(n, seed, "A", epoch + 1)(np.arange(n))
        assert (shuffled == other).mean() < 0.1
        assert abs(np.corrcoef(shuffled, np.arange(n))[0, 1]) < 0.6


def test_a_permutation_of_a_huge_range_needs_no_memory() -> None:
    n = 5_000_000_000_000
    shuffled = Permutation(n, 1)(np.arange(n - 1000, n))
    assert len(set(shuffled.tolist())) == 1000 and shuffled.min() >= 0 and shuffled.max() < n


def test_a_pass_reads_every_sequence_once(store: FolderStore) -> None:
    reader = ShardReader(store, "A", LENGTH)
    tokens = all_tokens(store, "A")
    assert reader.n_sequences == (tokens.size - 1) // LENGTH
    for epoch in (1, 2):
        batches = list(reader.batches([[epoch, 0, reader.n_sequences]], 7, seed=3))
        assert all(b.shape == (7, LENGTH + 1) and b.dtype == np.int64 for b in batches[:-1])
        rows = np.concatenate(batches)
        order = np.argsort(Permutation(reader.n_sequences, 3, "A", epoch)(np.arange(reader.n_sequences)))
        targets = rows[order][:, 1:].ravel()
        assert np.array_equal(targets, tokens[1 : targets.size + 1])
        assert np.array_equal(rows[order][:, 0], tokens[: targets.size : LENGTH])


def test_batches_depend_on_ranges_and_seed_alone(store: FolderStore) -> None:
    def rows(ranges: list, seed: int = 5, size: int = 4) -> np.ndarray:
        return np.concatenate(list(ShardReader(store, "B", LENGTH).batches(ranges, size, seed)))

    whole = rows([(1, 10, 50), (2, 0, 6)])
    assert np.array_equal(whole, rows([(1, 10, 50), (2, 0, 6)]))
    assert np.array_equal(whole, np.concatenate([rows([(1, 10, 13)]), rows([(1, 13, 50)], size=9), rows([(2, 0, 6)])]))
    assert not np.array_equal(whole, rows([(1, 10, 50), (2, 0, 6)], seed=6))
    assert not np.array_equal(rows([(1, 0, 6)]), rows([(2, 0, 6)]))


def test_moved_ranges_are_read_from_their_owner(store: FolderStore) -> None:
    own = list(ShardReader(store, "A", LENGTH).batches([(1, 4, 10)], 3, seed=1))
    moved = list(ShardReader(store, "B", LENGTH).batches([(1, 4, 10, "A")], 3, seed=1))
    assert all(np.array_equal(a, b) for a, b in zip(own, moved, strict=True))


def test_torch_shares_the_memory_of_a_batch(store: FolderStore) -> None:
    first, second = list(ShardReader(store, "A", LENGTH).batches([(1, 0, 8)], 4, seed=0))
    kept = first.copy()
    assert torch.from_numpy(first).data_ptr() == first.ctypes.data
    second[:] = 0
    assert np.array_equal(first, kept)


def test_the_last_batch_may_be_shorter(store: FolderStore) -> None:
    sizes = [len(b) for b in ShardReader(store, "A", LENGTH).batches([(1, 0, 4), (2, 5, 8)], 5, seed=0)]
    assert sizes == [5, 2]


def test_heldout_is_read_in_order(store: FolderStore) -> None:
    reader = HeldoutReader(store, LENGTH)
    tokens = all_tokens(store, "heldout")
    rows = np.concatenate(list(reader.batches(5)))
    assert np.array_equal(rows[:, :-1].ravel(), tokens[: reader.n_sequences * LENGTH])
    assert sum(len(b) for b in reader.batches(5, max_sequences=8)) == 8
    assert 1.5 < reader.bytes_per_token < 6


def test_ranges_of_other_shards_are_refused(store: FolderStore) -> None:
    reader = ShardReader(store, "A", LENGTH)
    with pytest.raises(CorpusError, match=f"beyond the {reader.n_sequences} sequences of A"):
        next(reader.batches([[1, 0, reader.n_sequences + 1]], 4, seed=0))
    with pytest.raises(LedgerError, match="epochs count from 1"):
        next(reader.batches([(0, 0, 4)], 4, seed=0))
    with pytest.raises(CorpusError, match="no token shards of 'X'; built are A, B, C"):
        _ = ShardReader(store, "X", LENGTH).n_sequences
    with pytest.raises(CorpusError, match="less than one sequence"):
        _ = ShardReader(store, "A", 10**9).n_sequences
    with pytest.raises(CorpusError, match="too small for the held-out split"):
        HeldoutReader(store, 10**9)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_flipped_bit_is_found_when_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, earlier: bool) -> None:
    monkeypatch.setattr(block_digests, "BLOCK", 4096)
    corpus, store = built_store(tmp_path)
    if earlier:  # a manifest that knows whole files only
        manifest = store.read_json("shards/A/manifest.json")
        for file in manifest["files"]:
            del file["blocks"]
        store.write_json("shards/A/manifest.json", manifest)
    path = store.path("shards/A/00000.bin")
    data = bytearray(path.read_bytes())
    data[3 * 4096 + 17] ^= 4
    path.write_bytes(data)
    tokens = TokenSet(store, "A")
    per_block = 4096 // tokens.dtype.itemsize
    row = np.empty((1, 16), dtype=np.int64)
    said = "00000.bin is damaged: sha256" if earlier else "in the MiB from byte 12288 on"
    for start in (3 * per_block + 500, 3 * per_block - 8):  # within the block, and into it
        with pytest.raises(CorpusError, match=said):
            tokens.fill(row, np.array([start]))
    if not earlier:
        tokens.fill(row, np.array([2 * per_block]))  # the rest is as it was written
    assert build_shards(corpus, store, SHARES)["A"].files[0].blocks
    TokenSet(store, "A").fill(row, np.array([3 * per_block]))


def test_a_truncated_shard_is_refused(tmp_path: Path) -> None:
    _, store = built_store(tmp_path)
    path = store.path("shards/A/00000.bin")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(CorpusError, match=r"shards/A/00000.bin has \d+ bytes instead of \d+; it is truncated"):
        _ = ShardReader(store, "A", LENGTH).n_sequences
    path.unlink()
    with pytest.raises(CorpusError, match="has 0 bytes"):
        _ = ShardReader(store, "A", LENGTH).n_sequences
