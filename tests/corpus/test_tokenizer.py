"""The tokenizer in its folder, and fast encoding that equals `tokenizers` token for token."""

import json
import time
from pathlib import Path

import fastokens
import numpy as np
import pytest
from corpus_texts import SHARES, build_shards, built_store, corpus_settings, texts, write_corpus
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from curtail_pipeline.corpus.dealing import TOKENIZER
from curtail_pipeline.corpus.encoder import Encoder, EncodingDiffers, with_separator
from curtail_pipeline.corpus.shard_set import build_tokenizer, load_manifest
from curtail_pipeline.corpus.tokenizer import (
    CHAT_TOKENS,
    LONGEST_RUN,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    train_tokenizer,
)
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.storage.folder_store import FolderStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(corpus_settings(path, vocab_size=4096), path, texts())
    return path


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Encoder:
    return Encoder(folder)


def test_transformers_loads_the_folder_without_code_of_ours(folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "Grüße, 漢字 🙂 and\n\tcode = 12345  # 'll\x00"
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id == tokenizer.eos_token_id == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert tokenizer.convert_tokens_to_ids(list(CHAT_TOKENS)) == list(range(1, 9))


def test_training_is_deterministic(folder: Path, tmp_path: Path) -> None:
    info = train_tokenizer(corpus_settings(tmp_path, vocab_size=4096), tmp_path, texts())
    assert (tmp_path / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    assert (info.vocab_size, info.dtype, info.separator_id) == (4096, "uint16", 0)


def test_fast_encoding_equals_tokenizers_on_real_text(encoder: Encoder) -> None:
    ids, offsets = encoder.encode(texts())
    assert np.array_equal(ids, np.concatenate(encoder.reference(texts())))
    assert offsets[0] == 0 and offsets[-1] == ids.size


AWKWARD = st.sampled_from([
    "<|bos|>", "<|user_start|>", "<|", "|>", "'s", "'S", "'ſ", "'LL", "e\u0301", "٣", "²", "ſ", "K", "İ", "漢", "🙂",
    "👩\u200d👩\u200d👧", "1", "1234", "a", "The", "...", "_", "'", " ", "\n", "\r\n", "\t", "\x00", "\x0b", "\x85",
    "\u00a0", "\u2028", "\u200b", "\ufeff", "\ufffd", "\U0010ffff",
])  # fmt: skip
TEXT = st.one_of(
    st.text(max_size=80),
    st.lists(AWKWARD, max_size=30).map("".join),
    st.tuples(AWKWARD, st.integers(1, 3000)).map(lambda pair: pair[0] * pair[1]),
    st.text(st.characters(max_codepoint=0x1F), max_size=40),
    st.tuples(st.text(max_size=10), st.sampled_from(texts()), st.text(max_size=10)).map("".join),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=12))
def test_fast_encoding_equals_tokenizers_on_any_text(encoder: Encoder, batch: list[str]) -> None:
    ids, offsets = encoder.encode(batch)
    for i, expected in enumerate(encoder.reference(batch)):
        assert np.array_equal(ids[offsets[i] : offsets[i + 1]], expected), batch[i]
    assert not np.isin(ids, np.arange(9)).any(), "special tokens never come from text"


def test_the_separator_stands_in_front_of_every_document(encoder: Encoder) -> None:
    ids, offsets = encoder.encode(["one two", "", "three"])
    tokens = with_separator(ids, offsets, 0, "uint16")
    assert tokens.dtype == np.dtype("<u2")
    assert np.flatnonzero(tokens == 0).tolist() == [0, offsets[1] + 1, offsets[1] + 2]
    assert np.array_equal(tokens[tokens != 0], ids)


REAL = fastokens.Tokenizer


class Faulty:
    """fastokens with a fault: one word is encoded otherwise."""

    def __init__(self, text: str) -> None:
        self._real = REAL.from_json_str(text)

    @classmethod
    def from_json_str(cls, text: str) -> "Faulty":
        return cls(text)

    def encode_batch_flat(self, batch: list[str], **options: bool) -> tuple[bytes, bytes]:
        return self._real.encode_batch_flat([text.replace("import", "export") for text in batch], **options)


def test_a_difference_is_found_and_the_build_falls_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, good = built_store(tmp_path / "good")
    monkeypatch.setattr("fastokens.Tokenizer", Faulty)
    settings, store = built_store(tmp_path / "bad")
    assert "differently; encoding with tokenizers instead" in caplog.text
    assert load_manifest(store, "A").engine == "tokenizers"
    for target in ("shards/A", "shards/B", "shards/C", "heldout"):
        assert store.read_bytes(f"{target}/00000.bin") == good.read_bytes(f"{target}/00000.bin")
    caplog.clear()
    build_shards(settings, store, SHARES)
    assert not caplog.text, "what is known is not tried again"


def test_a_tokenizer_that_fastokens_cannot_load_is_encoded_with_tokenizers(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.NFKD()
    (tmp_path / "own").mkdir()
    tokenizer.save(str(tmp_path / "own" / "tokenizer.json"))
    with pytest.raises(EncodingDiffers, match="fastokens cannot load"):
        Encoder(tmp_path / "own")
    _, store = built_store(tmp_path, tokenizer=str(tmp_path / "own"), workers=1)
    assert "fastokens cannot load this tokenizer" in caplog.text
    assert load_manifest(store, "B").engine == "tokenizers"


def test_an_existing_tokenizer_is_loaded(folder: Path, tmp_path: Path) -> None:
    settings = corpus_settings(write_corpus(tmp_path / "a.parquet"), tokenizer=str(folder))
    store = FolderStore(tmp_path / "store")
    info = build_tokenizer(settings, store)
    assert info.vocab_size == 4096
    assert build_tokenizer(settings, store) == info
    with pytest.raises(CorpusError, match=r"has no token '<s>'.*special tokens: <\|bos\|>"):
        load_tokenizer(corpus_settings(tmp_path, tokenizer=str(folder), separator="<s>"), tmp_path / "x")
    with pytest.raises(CorpusError, match="cannot load the tokenizer"):
        load_tokenizer(corpus_settings(tmp_path, tokenizer=str(tmp_path / "nowhere")), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_damaged_tokenizer_in_the_store_is_named(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.write_bytes(f"{TOKENIZER}/tokenizer.json", b"{}")
    with pytest.raises(CorpusError, match="is not a tokenizer"):
        build_tokenizer(corpus_settings(tmp_path), store)


def test_a_corpus_without_text_trains_nothing(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text(" \n")
    with pytest.raises(CorpusError, match="no text to train a tokenizer on"):
        build_tokenizer(corpus_settings(tmp_path / "text"), FolderStore(tmp_path / "store"))
    assert not (tmp_path / "store" / TOKENIZER / "tokenizer.json").exists()


def test_one_long_word_costs_no_more_than_its_length(tmp_path: Path) -> None:
    """Learnt in pieces, encoded whole: no token is as long as the word, and the ids give it back."""
    word = "a" * 40_000
    begin = time.process_time()
    save_tokenizer(train_bpe([*texts(), word, "-" * 40_000, " " * 40_000], 512, "<|bos|>"), tmp_path, "<|bos|>")
    encoder = Encoder(tmp_path)
    ids, _ = encoder.encode([word])
    assert time.process_time() - begin < 5, "22 s when words were learnt whole"
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())["model"]["vocab"]
    assert max(map(len, vocabulary)) <= LONGEST_RUN
    names = {number: token for token, number in vocabulary.items()}
    assert "".join(names[int(number)] for number in ids) == word
