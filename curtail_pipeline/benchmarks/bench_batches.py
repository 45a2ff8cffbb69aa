"""Batch reader: tokens per second, time to the first batch, and memory, over a manifest of 10 billion tokens.

The shard files are sparse, so the manifest is the size of a real corpus and the disk is not: what is timed is the
reader, not a disk.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import TypedDict

from curtail_pipeline.corpus.batches import ShardReader
from curtail_pipeline.corpus.block_digests import digested
from curtail_pipeline.corpus.build import manifest_key
from curtail_pipeline.corpus.corpus_records import ShardManifest
from curtail_pipeline.corpus.documents import ReadCounts
from curtail_pipeline.storage.folder_store import FolderStore

NO_SHA256 = "0" * 64


def sparse_shards(store: FolderStore, site: str, tokens: int, shard_tokens: int = 1 << 26) -> None:
    """Shards of zeros, with a manifest; the files have a length but no content."""
    files = []
    for number, start in enumerate(range(0, tokens, shard_tokens)):
        count = min(shard_tokens, tokens - start)
        path = store.path(f"shards/{site}/{number:05d}.bin")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.truncate(2 * count)
        files.append(digested(path, count))
    manifest = ShardManifest(
        target=site,
        dealing_sha256=NO_SHA256,
        tokenizer_sha256=NO_SHA256,
        vocab_size=1 << 16,
        separator_id=0,
        dtype="uint16",
        engine="fastokens",
        documents=1,
        bytes=tokens,
        tokens=tokens,
        files=tuple(files),
        slices=(),
        counts=ReadCounts(documents=1),
    )
    store.write_record(manifest_key(site), manifest)


class Reading(TypedDict):
    """What `run` measured and what was run."""

    tokens_per_s: int
    """Delivered int64 tokens."""
    first_batch_s: float
    """From opening the manifest."""
    peak_mib: float
    """Growth of resident memory over the run, mapped pages included."""
    tokens: int
    sequence_length: int
    sequences_per_batch: int
    seconds: float


def run(
    *,
    tokens: int = 10_000_000_000,
    sequence_length: int = 2048,
    sequences: int = 16,
    seconds: float = 10.0,
) -> Reading:
    """Read shuffled batches for some seconds."""
    import torch

    with tempfile.TemporaryDirectory() as folder:
        store = FolderStore(Path(folder))
        sparse_shards(store, "S", tokens)
        before = _resident_mib()
        start = time.perf_counter()
        reader = ShardReader(store, "S", sequence_length)
        batches = reader.batches([(1, 0, reader.n_sequences)], sequences, seed=0)
        torch.from_numpy(next(batches))
        first = time.perf_counter() - start
        print(f"first batch after {first:.3f} s", file=sys.stderr)
        count, start, peak = 0, time.perf_counter(), before
        for batch in batches:
            count += torch.from_numpy(batch)[:, 1:].numel()
            if count % (1 << 25) < batch.size:
                peak = max(peak, _resident_mib())
            if time.perf_counter() - start >= seconds:
                break
        elapsed = time.perf_counter() - start
    return {
        "tokens_per_s": round(count / elapsed),
        "first_batch_s": round(first, 4),
        "peak_mib": round(peak - before, 1),
        "tokens": tokens,
        "sequence_length": sequence_length,
        "sequences_per_batch": sequences,
        "seconds": round(elapsed, 2),
    }


def _resident_mib() -> float:
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


if __name__ == "__main__":
    print(json.dumps(run()))
