"""Building shards: the split, the dealing, the same bytes however and whenever built, and what is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import psutil
import pytest
from corpus_texts import SHARES, build_shards, built_store, corpus_settings, texts, write_corpus
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from waiting import children

from curtail_pipeline.corpus import sources
from curtail_pipeline.corpus.batches import TokenSet
from curtail_pipeline.corpus.build import build_targets
from curtail_pipeline.corpus.corpus_records import ShardManifest
from curtail_pipeline.corpus.dealing import HELDOUT, MANIFEST, TOKENIZER, Hasher, freeze_dealing, load_dealing
from curtail_pipeline.corpus.shard_set import (
    build_heldout,
    build_site_shards,
    build_tokenizer,
    load_manifest,
)
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256

TARGETS = (*SHARES, HELDOUT)


def folder(target: str) -> str:
    return target if target == HELDOUT else f"shards/{target}"


def shard_bytes(store: FolderStore) -> dict[str, bytes]:
    return {
        f"{folder(target)}/{name}": store.read_bytes(f"{folder(target)}/{name}")
        for target in TARGETS
        for name in store.list(folder(target))
    }


def stored_as_recorded(store: FolderStore, manifest: ShardManifest) -> bool:
    """Whether every shard file has the sha256 that the manifest says."""
    root = store.path(folder(manifest.target))
    return all(file_sha256(root / file.name) == file.sha256 for file in manifest.files)


def decoded(store: FolderStore, target: str) -> list[str]:
    """The documents in a target's shards."""
    tokens = TokenSet(store, target)
    ids = np.empty((1, tokens.n_tokens), dtype=np.int64)
    tokens.fill(ids, np.array([0]))
    tokenizer = Tokenizer.from_file(str(store.path(TOKENIZER) / "tokenizer.json"))
    parts = np.split(ids[0], np.flatnonzero(ids[0] == tokens.manifest.separator_id))
    assert parts[0].size == 0
    return tokenizer.decode_batch([part[1:].tolist() for part in parts[1:]])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[CorpusSettings, FolderStore]:
    return built_store(tmp_path_factory.mktemp("shards"), shard_tokens=20_000)


def test_every_document_is_in_one_place(built: tuple[CorpusSettings, FolderStore]) -> None:
    _, store = built
    found = {target: decoded(store, target) for target in TARGETS}
    assert sorted(text for part in found.values() for text in part) == sorted(texts())
    for target, part in found.items():
        manifest = load_manifest(store, target)
        assert manifest.documents == len(part)
        assert manifest.bytes == sum(len(text.encode()) for text in part)
        assert all(file.tokens == 20_000 for file in manifest.files[:-1])
        assert manifest.tokens == sum(file.tokens for file in manifest.files)
        assert stored_as_recorded(store, manifest)
    assert len(load_manifest(store, "A").files) > 2


def test_sites_are_dealt_their_shares(built: tuple[CorpusSettings, FolderStore]) -> None:
    dealt = {site: load_manifest(built[1], site).documents for site in SHARES}
    whole = sum(dealt.values())
    assert {site: n / whole for site, n in dealt.items()} == pytest.approx({"A": 0.5, "B": 0.25, "C": 0.25}, abs=0.08)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(min_size=1), min_size=1), st.lists(st.text(min_size=1)), st.floats(0.001, 0.499))
def test_the_split_follows_from_the_text_alone(documents: list[str], added: list[str], fraction: float) -> None:
    def out(batch: list[str], share: float = fraction) -> set[str]:
        keys = Hasher()([(text, False) for text in batch])
        return {text for text, held in zip(batch, keys.heldout(share), strict=True) if held}

    assert out(documents) == out(added + documents) & set(documents)
    assert out(documents) <= out(documents, 0.499)
    pieces = Hasher()([(documents[0], False), *((text, True) for text in added)])
    assert len(set(pieces.split.tolist())) == len(set(pieces.site.tolist())) == 1


def test_documents_stay_where_they_are_when_others_are_added(tmp_path: Path) -> None:
    _, store = built_store(tmp_path / "few")
    more = FolderStore(tmp_path / "more")
    source = write_corpus(tmp_path / "b.parquet", tuple(f"added {i}" for i in range(200)) + texts())
    build_shards(corpus_settings(source, tokenizer=str(store.path(TOKENIZER))), more, SHARES)
    for target in TARGETS:
        assert set(decoded(store, target)) <= set(decoded(more, target))


def test_the_tokenizer_never_sees_heldout_text(built: tuple[CorpusSettings, FolderStore]) -> None:
    from curtail_pipeline.corpus.shard_set import training_sample

    config, store = built
    sample = list(training_sample(config, store))
    assert 0.15 * 2**20 < sum(len(text.encode()) for text in sample) < 0.25 * 2**20
    assert not set(sample) & set(decoded(store, HELDOUT))


def test_worker_processes_give_the_same_bytes(
    built: tuple[CorpusSettings, FolderStore], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, store = built
    monkeypatch.setattr(sources, "SLICE_BYTES", 1)  # many slices
    frame = pl.DataFrame({"text": [*texts()] * 6})
    frame.write_parquet(tmp_path / "a.parquet")
    many = config.model_copy(update={"source": str(tmp_path / "a.parquet"), "tokenizer": str(store.path(TOKENIZER))})
    stores: dict[int | None, FolderStore] = {}
    seen: list[tuple[int, int]] = []
    for workers in (None, 2):
        stores[workers] = FolderStore(tmp_path / f"{workers}")
        seen.clear()
        build_shards(
            many.model_copy(update={"workers": workers}),
            stores[workers],
            SHARES,
            lambda done, whole: seen.append((done, whole)),
        )
        n = len(load_dealing(many, stores[workers]).source.slices)
        assert n > 3 and seen == [(i, n) for i in range(1, n + 1)]
    assert shard_bytes(stores[None]) == shard_bytes(stores[2])


def test_building_one_site_again_touches_only_that_site(tmp_path: Path) -> None:
    config, store = built_store(tmp_path)
    before = shard_bytes(store)
    inodes = {target: store.path(f"{folder(target)}/00000.bin").stat().st_ino for target in TARGETS}
    damaged = store.path("shards/B/00000.bin")
    data = bytearray(damaged.read_bytes())
    data[1000] ^= 1
    damaged.write_bytes(data)
    assert not stored_as_recorded(store, load_manifest(store, "B"))
    build_site_shards(config, store, "B")
    assert shard_bytes(store) == before
    assert {t for t in TARGETS if store.path(f"{folder(t)}/00000.bin").stat().st_ino != inodes[t]} == {"B"}
    assert not list(store.path("scratch").rglob("*.bin"))


BUILD = """
import sys
from curtail_pipeline.corpus import sources
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.corpus.shard_set import build_site_shards
from curtail_pipeline.storage.folder_store import FolderStore
settings = CorpusSettings.model_validate_json(sys.argv[1])
build_site_shards(settings, FolderStore(sys.argv[2]), "A", lambda done, n: print(done, flush=True))
"""


@pytest.mark.parametrize("workers", [None, 1, 2])
def test_a_killed_build_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int | None) -> None:
    monkeypatch.setattr(sources, "SLICE_BYTES", 1)
    source = write_corpus(tmp_path / "a.parquet", texts() * 24)
    config = corpus_settings(source, shard_tokens=50_000, workers=workers)
    store = FolderStore(tmp_path / "store")
    build_tokenizer(config, store)
    n = len(freeze_dealing(config, store, SHARES).source.slices)
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD, config.model_dump_json(), str(store.root)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while int(process.stdout.readline()) < 3:
        pass
    workers_running = psutil.Process(process.pid).children()
    if workers == 1:
        workers_running[0].suspend()  # it would not see that its input ends
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert psutil.wait_procs(workers_running, timeout=90)[1] == []
    assert not store.exists("shards/A/manifest.json")
    # what was written after the last recorded state is cut off
    for path in store.path("scratch").rglob("A/0*.bin"):
        with path.open("ab") as stream:
            stream.write(b"\xff" * 1001)
    seen: list[int] = []
    manifest = build_site_shards(config, store, "A", lambda done, _: seen.append(done))
    assert 3 < seen[0] <= n == seen[-1]
    whole = FolderStore(tmp_path / "whole")
    other = config.model_copy(update={"tokenizer": str(store.path(TOKENIZER)), "workers": None})
    build_tokenizer(other, whole)
    freeze_dealing(other, whole, SHARES)
    assert build_site_shards(other, whole, "A") == manifest
    assert load_manifest(store, "A") == manifest and stored_as_recorded(store, manifest)


def test_scratch_that_was_damaged_is_built_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SLICE_BYTES", 1)
    config = corpus_settings(write_corpus(tmp_path / "a.parquet", texts() * 8), shard_tokens=20_000)
    store, whole = FolderStore(tmp_path / "store"), FolderStore(tmp_path / "whole")
    for each in (store, whole):
        build_tokenizer(config, each)
        freeze_dealing(config, each, SHARES)

    class Stop(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        build_site_shards(config, store, "A", stop)
    scratch = next(store.path("scratch").rglob("A/00000.bin"))
    scratch.write_bytes(scratch.read_bytes()[:-100])
    assert build_site_shards(config, store, "A") == build_site_shards(config, whole, "A")


def test_a_worker_that_dies_is_reported_and_the_build_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "SLICE_BYTES", 1)
    config = corpus_settings(write_corpus(tmp_path / "a.parquet", texts() * 8), workers=1)
    store = FolderStore(tmp_path / "store")
    build_tokenizer(config, store)
    freeze_dealing(config, store, SHARES)

    def kill(done: int, _: int) -> None:
        for child in children("python"):
            if "resource_tracker" not in child.cmdline()[-1]:  # which other tests need
                child.kill()

    with pytest.raises(CorpusError, match=r"a tokenising worker ended with status -9.* goes on where it stopped"):
        build_site_shards(config, store, "A", kill)
    assert build_site_shards(config, store, "A").documents > 0


def unchanged(store: FolderStore) -> bytes:
    return json.dumps([[str(p), p.stat().st_mtime_ns] for p in sorted(store.root.rglob("*")) if p.is_file()]).encode()


def test_another_dealing_is_refused(built: tuple[CorpusSettings, FolderStore], tmp_path: Path) -> None:
    config, store = built
    before = unchanged(store)
    assert freeze_dealing(config, store, {"A": 4.0, "B": 2.0, "C": 2.0}).shares == {"A": 0.5, "B": 0.25, "C": 0.25}
    for shares, changes, what in (
        ({"A": 1.0, "B": 1.0, "C": 1.0}, {}, "shares"),
        ({"A": 2.0, "B": 1.0}, {}, "shares"),
        (SHARES, {"heldout_fraction": 0.1}, "heldout_fraction"),
        (SHARES, {"shard_tokens": 5000}, "shard_tokens"),
        (SHARES, {"max_documents": 10}, "max_documents"),
        (SHARES, {"text_separator": "x"}, "text_separator"),
    ):
        with pytest.raises(CorpusError, match=f"already dealt, with {what} .* instead of .* another experiment name"):
            freeze_dealing(config.model_copy(update=changes), store, shares)
    with pytest.raises(CorpusError, match="the settings name"):
        freeze_dealing(config.model_copy(update={"source": "embedded"}), store, SHARES)
    assert unchanged(store) == before
    for shares in ({}, {"A": 0.0}):
        with pytest.raises(CorpusError, match="share above 0"):
            freeze_dealing(config, FolderStore(tmp_path), shares)
    with pytest.raises(CorpusError, match="no site can be called 'heldout'"):
        freeze_dealing(config, FolderStore(tmp_path), {"heldout": 1.0})


def test_an_unknown_site_is_refused_with_those_there_are(built: tuple[CorpusSettings, FolderStore]) -> None:
    config, store = built
    with pytest.raises(CorpusError, match=r"unknown site 'NOWHERE' in a shard request; .* A, B, C"):
        build_site_shards(config, store, "NOWHERE")


def test_text_that_changed_since_it_was_dealt_is_refused(tmp_path: Path) -> None:
    config, store = built_store(tmp_path)
    path = Path(config.source)
    before, data = shard_bytes(store), path.read_bytes()
    path.write_bytes(data + b"x")
    with pytest.raises(CorpusError, match=r"a.parquet of .* has changed since the corpus was dealt"):
        build_site_shards(config, store, "A")
    path.unlink()
    write_corpus(path.with_name("b.parquet"))
    with pytest.raises(CorpusError, match=r"names no|is gone"):
        build_site_shards(config, store, "A")
    pl.DataFrame({"text": [text.replace("return", "RETURN") for text in texts()]}).write_parquet(path)
    manifest = store.read_json(MANIFEST)
    manifest["files"][0]["bytes"] = path.stat().st_size  # of the same size, by chance
    store.write_json(MANIFEST, manifest)
    with pytest.raises(CorpusError, match="shards of another dealing"):
        build_site_shards(config, store, "A")
    assert shard_bytes(store) == before


def test_text_changed_within_its_size_is_found_by_building_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts()))
    config, store = corpus_settings(path), FolderStore(tmp_path / "store")
    build_shards(config, store, {"A": 1.0})
    before = store.read_bytes("shards/A/00000.bin")
    path.write_bytes(path.read_bytes().replace(b"return", b"RETURN"))
    with pytest.raises(CorpusError, match=r"building shards/A again gives other .* The stored shards are kept"):
        build_site_shards(config, store, "A")
    assert store.read_bytes("shards/A/00000.bin") == before


def test_files_added_to_the_folder_stay_unused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config, _store = built_store(tmp_path)
    folder_settings = config.model_copy(update={"source": str(tmp_path / "text")})
    other = FolderStore(tmp_path / "other")
    first = build_shards(folder_settings, other, SHARES)
    write_corpus(tmp_path / "text" / "z.parquet", ("new text",))
    assert build_site_shards(folder_settings, other, "A") == first["A"]
    assert "1 files of" in caplog.text and "stay unused" in caplog.text


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    config, store = built_store(tmp_path)
    before = shard_bytes(store)
    _, other = built_store(tmp_path / "other", vocab_size=600)
    store.put_file(other.path(f"{TOKENIZER}/tokenizer.json"), f"{TOKENIZER}/tokenizer.json")
    with pytest.raises(CorpusError, match="token shards of two tokenizers cannot be mixed"):
        build_site_shards(config, store, "A")
    with pytest.raises(CorpusError, match="cannot be mixed"):
        freeze_dealing(config, store, SHARES)
    assert shard_bytes(store) == before


def test_too_little_text_is_an_error_that_says_so(tmp_path: Path) -> None:
    config = corpus_settings(write_corpus(tmp_path / "a.parquet", ("a document", "and another")))
    store = FolderStore(tmp_path / "store")
    build_tokenizer(config, store)
    freeze_dealing(config, store, {"A": 1.0})
    with pytest.raises(CorpusError, match="too small for the held-out split: none of 2 documents"):
        build_heldout(config, store)
    with pytest.raises(CorpusError, match="too small"):
        build_targets(config, store, ["A", HELDOUT], None)
    assert store.list("shards") == [] and store.list(HELDOUT) == []
    one = corpus_settings(write_corpus(tmp_path / "b.parquet", ("a single document",)), heldout_fraction=0.001)
    sparse = FolderStore(tmp_path / "sparse")
    build_tokenizer(one, sparse)
    freeze_dealing(one, sparse, {"A": 1.0, "B": 1.0})
    failed = 0
    for site in ("A", "B"):
        try:
            build_site_shards(one, sparse, site)
        except CorpusError as error:
            failed += 1
            assert f"none of 1 documents is dealt to {site}" in str(error)
    assert failed == 1
    blank = corpus_settings(write_corpus(tmp_path / "c.parquet", (" ", "\n")), tokenizer=str(store.path(TOKENIZER)))
    build_tokenizer(blank, FolderStore(tmp_path / "blank"))
    freeze_dealing(blank, FolderStore(tmp_path / "blank"), {"A": 1.0})
    with pytest.raises(CorpusError, match="has no document with text"):
        build_site_shards(blank, FolderStore(tmp_path / "blank"), "A")


def test_two_builds_of_one_target_exclude_each_other(tmp_path: Path) -> None:
    config, store = built_store(tmp_path)
    root = store.path(f"scratch/corpus/{load_dealing(config, store).sha256[:16]}-fastokens")
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / "A.lock"), pytest.raises(CorpusError, match="another process is building the shards of A"):
        build_site_shards(config, store, "A")
    assert build_site_shards(config, store, "A") == load_manifest(store, "A")


def test_a_missing_shard_file_is_named(tmp_path: Path) -> None:
    _, store = built_store(tmp_path)
    store.path("heldout/00000.bin").unlink()
    with pytest.raises(
        CorpusError, match=r"shard heldout/00000.bin has 0 bytes instead of \d+; .* materialise heldout"
    ):
        TokenSet(store, HELDOUT)


def test_a_large_vocabulary_is_stored_in_four_bytes(tmp_path: Path) -> None:
    _, small = built_store(tmp_path / "small")
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    content = small.read_json(f"{TOKENIZER}/tokenizer.json")
    content["model"]["vocab"] |= {f"unused {i}": 1024 + i for i in range(70_000)}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    _, store = built_store(tmp_path / "large", tokenizer=str(folder))
    assert load_manifest(store, "A").dtype == "uint32"
    assert decoded(store, "A") == decoded(small, "A")
