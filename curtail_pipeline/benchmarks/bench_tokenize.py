"""Tokenising: the product's encoder against `tokenizers` and tiktoken, and text column to shard bytes against the same.

The text is Python source of this installation. Every engine sees every document once, after a warm-up on other text,
because engines cache what they have seen.
"""

import itertools
import json
import os
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypedDict, TypeVar

import numpy as np
import polars as pl
import psutil

from curtail_pipeline.cores import usable_cores
from curtail_pipeline.corpus.build import build_targets
from curtail_pipeline.corpus.dealing import HELDOUT, freeze_dealing
from curtail_pipeline.corpus.encoder import Encoder
from curtail_pipeline.corpus.tokenizer import PATTERN, train_tokenizer
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.folder_store import FolderStore

BATCH_BYTES = 1 << 21

T = TypeVar("T")


class Speeds(TypedDict):
    """What `run` measured and what was run."""

    mib_per_s: float
    baseline_mib_per_s: float
    """`tokenizers`, `encode_batch_fast`, all threads."""
    tiktoken_mib_per_s: float | None
    """None where tiktoken is not installed."""
    ratio: float
    """Of the first two."""
    equal: bool
    """Token for token with `tokenizers`, the whole text."""
    tiktoken_equal: bool | None
    tokens: int
    mib: float
    vocab_size: int
    cores: int
    end_to_end_mib_per_s: float
    """Parquet column to shard bytes."""
    end_to_end_baseline_mib_per_s: float
    """It encodes and writes, and does nothing else."""
    end_to_end_ratio: float
    shard_bytes: int
    workers_mib_per_s: float
    """A build of `workers_mib` in worker processes."""
    workers_peak_mib: float
    """Their summed peak of resident memory."""


def run(*, mib: float = 30.0, vocab_size: int = 32_768, workers_mib: float = 240.0) -> Speeds:
    """Encode `mib` of Python text with each engine, and build shards of it end to end."""
    warm, documents = _documents(mib)
    size = sum(len(text.encode()) for text in documents) / 2**20
    batches = list(_batches(documents))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = CorpusSettings(source=str(folder / "text.parquet"), vocab_size=vocab_size)
        _log(f"{len(documents)} documents, {size:.1f} MiB; training a tokenizer of {vocab_size} tokens")
        train_tokenizer(settings, folder, itertools.islice(documents, 0, None, 4))
        os.environ["TOKENIZERS_PARALLELISM"] = "true"

        encoder = Encoder(folder)
        encoder.encode(warm)
        ours, fast_s = _timed(encoder, batches)
        reference = Encoder(folder, "tokenizers")
        reference._reference.encode_batch_fast(warm, add_special_tokens=False)
        theirs, slow_s = _baseline(reference, batches)
        equal = np.array_equal(ours, theirs)
        _log(f"fastokens {size / fast_s:.1f} MiB/s, tokenizers {size / slow_s:.1f} MiB/s, equal: {equal}")
        tiktoken_s, tiktoken_equal = _tiktoken(folder, warm, batches, theirs)

        pl.DataFrame({"text": documents}).write_parquet(folder / "text.parquet")
        built_s, shard_bytes = _end_to_end(settings, folder)
        plain_s = _plain_end_to_end(settings, folder)
        _log(f"end to end {size / built_s:.1f} MiB/s, with tokenizers {size / plain_s:.1f} MiB/s")
        copies = max(1, round(workers_mib / size))
        pl.DataFrame({"text": documents * copies}).write_parquet(folder / "text.parquet", row_group_size=512)
        many = settings.model_copy(update={"workers": max(1, min(usable_cores(), 2))})
        (workers_s, _), peak = _watched(lambda: _end_to_end(many, folder))
    return {
        "mib_per_s": round(size / fast_s, 1),
        "baseline_mib_per_s": round(size / slow_s, 2),
        "tiktoken_mib_per_s": tiktoken_s and round(size / tiktoken_s, 1),
        "ratio": round(slow_s / fast_s, 1),
        "equal": equal,
        "tiktoken_equal": tiktoken_equal,
        "tokens": int(ours.size),
        "mib": round(size, 1),
        "vocab_size": vocab_size,
        "cores": usable_cores(),
        "end_to_end_mib_per_s": round(size / built_s, 1),
        "end_to_end_baseline_mib_per_s": round(size / plain_s, 2),
        "end_to_end_ratio": round(plain_s / built_s, 1),
        "shard_bytes": shard_bytes,
        "workers_mib_per_s": round(size * copies / workers_s, 1),
        "workers_peak_mib": round(peak, 1),
    }


def _log(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _documents(mib: float) -> tuple[list[str], list[str]]:
    """(warm-up documents, others of `mib` in all), from site-packages and the standard library."""
    room = int(mib * 2**20)
    warm: list[str] = []
    documents: list[str] = []
    roots = [Path(sysconfig.get_path("purelib")), Path(sysconfig.get_path("stdlib"))]
    for path in itertools.chain.from_iterable(sorted(root.rglob("*.py")) for root in roots):
        text = path.read_text(encoding="utf-8", errors="replace")
        if not text.strip():
            continue
        if len(warm) < 40:
            warm.append(text)
            continue
        documents.append(text)
        room -= len(text.encode())
        if room <= 0:
            break
    return warm, documents


def _batches(documents: list[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in documents:
        batch.append(text)
        size += len(text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _timed(encoder: Encoder, batches: list[list[str]]) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    ids = [encoder.encode(batch)[0] for batch in batches]
    elapsed = time.perf_counter() - start
    return np.concatenate(ids), elapsed


def _baseline(encoder: Encoder, batches: list[list[str]]) -> tuple[np.ndarray, float]:
    """`encode_batch_fast` alone is timed, not the copy of its ids."""
    ids, elapsed = [], 0.0
    for batch in batches:
        start = time.perf_counter()
        encoded = encoder._reference.encode_batch_fast(batch, add_special_tokens=False)
        elapsed += time.perf_counter() - start
        ids += [np.asarray(item.ids, dtype=np.uint32) for item in encoded]
    return np.concatenate(ids), elapsed


def _tiktoken(
    folder: Path, warm: list[str], batches: list[list[str]], expected: np.ndarray
) -> tuple[float | None, bool | None]:
    """The same merges as a tiktoken encoding; ids differ by the special tokens in front."""
    try:
        import tiktoken
    except ImportError:
        _log("tiktoken is not installed (the bench extra has it)")
        return None, None
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in content["added_tokens"]}
    letters = _byte_letters()
    ranks = {
        bytes(letters[letter] for letter in token): number - len(special)
        for token, number in content["model"]["vocab"].items()
        if token not in special
    }
    encoding = tiktoken.Encoding("bench", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    encoding.encode_ordinary_batch(warm, num_threads=usable_cores())
    ids, elapsed = [], 0.0
    for batch in batches:
        start = time.perf_counter()
        encoded = encoding.encode_ordinary_batch(batch, num_threads=usable_cores())
        elapsed += time.perf_counter() - start
        ids += [np.asarray(row, dtype=np.uint32) for row in encoded]
    return elapsed, bool(np.array_equal(np.concatenate(ids) + len(special), expected))


def _byte_letters() -> dict[str, int]:
    """GPT-2's printable letter of every byte, as byte-level BPE writes its vocabulary."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(rest)}


def _end_to_end(settings: CorpusSettings, folder: Path) -> tuple[float, int]:
    """Seconds from the text column to the committed shards of two sites and the held-out text, and their bytes."""
    with tempfile.TemporaryDirectory() as root:
        store = FolderStore(root)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            store.put_file(folder / name, f"corpus/tokenizer/{name}")
        freeze_dealing(settings, store, {"A": 1.0, "B": 1.0})
        start = time.perf_counter()
        manifests = build_targets(settings, store, ["A", "B", HELDOUT], None)
        elapsed = time.perf_counter() - start
        return elapsed, sum(path.stat().st_size for path in store.root.rglob("*.bin")) * bool(manifests)


def _plain_end_to_end(settings: CorpusSettings, folder: Path) -> float:
    """The same text column to one file of token bytes with `tokenizers`."""
    encoder = Encoder(folder, "tokenizers")
    start = time.perf_counter()
    documents = pl.read_parquet(settings.source)["text"].to_list()
    with (folder / "plain.bin").open("wb") as stream:
        for batch in _batches(documents):
            ids, _ = encoder.encode(batch)
            stream.write(ids.astype("<u2").tobytes())
        stream.flush()
        os.fsync(stream.fileno())
    return time.perf_counter() - start


def _watched(action: Callable[[], T]) -> tuple[T, float]:
    """The action's result, and the peak of resident MiB over all child processes meanwhile."""
    done, peak = threading.Event(), 0.0

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            total = 0
            for child in psutil.Process().children(recursive=True):
                try:
                    total += child.memory_info().rss
                except psutil.NoSuchProcess:
                    continue
            peak = max(peak, total / 2**20)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        return action(), peak
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    print(json.dumps(run()))
