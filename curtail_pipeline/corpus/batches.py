"""Token shards to batches: a pure function of manifest, ranges and seed, over memory maps.

Sequence s of a shard set is its tokens `s * T ... s * T + T` (T + 1 of them: inputs and next-token targets), so every
token is predicted once. Positions of a pass go through a seeded permutation (see `permutation`) to sequences.
"""

import mmap
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from curtail_pipeline.corpus.block_digests import VerifiedFile
from curtail_pipeline.corpus.build import folder_of
from curtail_pipeline.corpus.dealing import HELDOUT
from curtail_pipeline.corpus.permutation import Permutation
from curtail_pipeline.corpus.shard_set import load_manifest
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.storage.store import Store
from curtail_pipeline.tokens.ranges import Ranges, Span, parse_ranges

LOOKAHEAD = 4096
"""Positions permuted at a time."""
RELEASE_BYTES = 1 << 25


class TokenSet:
    """The memory-mapped tokens of one site or of the held-out text."""

    def __init__(self, store: Store, target: str) -> None:
        self.target = target
        self.manifest = load_manifest(store, target)
        self.dtype = np.dtype(self.manifest.dtype).newbyteorder("<")
        self.n_tokens = self.manifest.tokens
        self._store = store
        self._maps: dict[int, np.ndarray] = {}
        self._memory: list[mmap.mmap] = []
        self._touched = 0
        self._verified: dict[int, VerifiedFile] = {}
        self._starts = np.concatenate(([0], np.cumsum([file.tokens for file in self.manifest.files])))
        for file in self.manifest.files:
            found = store.size(f"{folder_of(target)}/{file.name}") or 0
            if found != file.tokens * self.dtype.itemsize:
                raise CorpusError(
                    f"shard {folder_of(target)}/{file.name} has {found} bytes instead of "
                    f"{file.tokens * self.dtype.itemsize}; it is truncated: materialise {target} again"
                )

    def _map(self, index: int) -> np.ndarray:
        tokens = self._maps.get(index)
        if tokens is None:
            file = self.manifest.files[index]
            key = f"{folder_of(self.target)}/{file.name}"
            with self._store.local(key) as path, path.open("rb") as stream:
                memory = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
            if hasattr(memory, "madvise"):
                memory.madvise(mmap.MADV_RANDOM)  # shuffled sequences: reading ahead would read in vain
            self._memory.append(memory)
            fix = f"materialise the shards of {self.target} again"
            self._verified[index] = VerifiedFile(memory, file, key, fix)
            tokens = self._maps[index] = np.frombuffer(memory, dtype=self.dtype)
        return tokens

    def _release(self, size: int) -> None:
        """Give mapped pages back every `RELEASE_BYTES`, so that a long pass does not count the whole set as memory;
        the operating system keeps them cached."""
        self._touched += size
        if self._touched >= RELEASE_BYTES:
            self._touched = 0
            for memory in self._memory:
                if hasattr(memory, "madvise"):
                    memory.madvise(mmap.MADV_DONTNEED)

    def _take(self, index: int, low: int, count: int) -> np.ndarray:
        """Up to `count` verified tokens of a file."""
        have = self._map(index)[low : low + count]
        self._verified[index].check(low * self.dtype.itemsize, (low + have.size) * self.dtype.itemsize)
        return have

    def fill(self, out: np.ndarray, starts: np.ndarray) -> None:
        """Row i of `out` (n, width) becomes the tokens from `starts[i]` on, across shard files where need be.

        Raises:
            CorpusError: they are not what was written.
        """
        width = out.shape[1]
        files = np.searchsorted(self._starts, starts, side="right") - 1
        for row, (index, low) in enumerate(zip(files.tolist(), (starts - self._starts[files]).tolist(), strict=True)):
            have = self._take(index, low, width)
            out[row, : have.size] = have
            filled = have.size
            while filled < width:
                index += 1
                have = self._take(index, 0, width - filled)
                out[row, filled : filled + have.size] = have
                filled += have.size
        self._release(out.shape[0] * width * self.dtype.itemsize)


class ShardReader:
    """Batches of one site's shard set, and of sets from which text was moved to it.

    Raises:
        CorpusError: (`n_sequences`, `batches`) shards that are not built, truncated, or shorter than one sequence.
    """

    def __init__(self, store: Store, site: str, sequence_length: int) -> None:
        self._store, self.site, self.sequence_length = store, site, sequence_length
        self._sets: dict[str, TokenSet] = {}

    @property
    def n_sequences(self) -> int:
        """Of the site's own shard set."""
        return self._count(self._set(self.site))

    def _set(self, owner: str) -> TokenSet:
        if owner not in self._sets:
            self._sets[owner] = TokenSet(self._store, owner)
        return self._sets[owner]

    def _count(self, tokens: TokenSet) -> int:
        n = (tokens.n_tokens - 1) // self.sequence_length
        if n < 1:
            raise CorpusError(
                f"{tokens.target} has {tokens.n_tokens} tokens, less than one sequence of {self.sequence_length + 1}; "
                "add text or shorten training.sequence_length"
            )
        return n

    def batches(self, ranges: Ranges, sequences_per_batch: int, seed: int) -> Iterator[np.ndarray]:
        """int64 arrays (sequences_per_batch, sequence_length + 1) in the order of the ranges; the last may be shorter.

        Each is a new array: `torch.from_numpy` shares its memory without a copy.

        Raises:
            CorpusError: a range beyond the shard set.
            LedgerError: a malformed range.
        """
        spans = parse_ranges(ranges, self.site)
        for span in spans:
            n = self._count(self._set(span.owner))
            if span.stop > n:
                raise CorpusError(f"range {[*span]} ends beyond the {n} sequences of {span.owner}'s shards")
        out, filled = self._empty(sequences_per_batch), 0
        for tokens, sequences in self._order(spans, seed):
            at = 0
            while at < sequences.size:
                rows = min(sequences_per_batch - filled, sequences.size - at)
                tokens.fill(out[filled : filled + rows], sequences[at : at + rows] * self.sequence_length)
                at, filled = at + rows, filled + rows
                if filled == sequences_per_batch:
                    yield out
                    out, filled = self._empty(sequences_per_batch), 0
        if filled:
            yield out[:filled]

    def _empty(self, rows: int) -> np.ndarray:
        return np.empty((rows, self.sequence_length + 1), dtype=np.int64)

    def _order(self, spans: list[Span], seed: int) -> Iterator[tuple[TokenSet, np.ndarray]]:
        for span in spans:
            tokens = self._set(span.owner)
            shuffle = _permutation(self._count(tokens), seed, span.owner, span.epoch)
            for low in range(span.start, span.stop, LOOKAHEAD):
                yield tokens, shuffle(np.arange(low, min(low + LOOKAHEAD, span.stop)))


@lru_cache(maxsize=64)
def _permutation(n: int, seed: int, owner: str, epoch: int) -> Permutation:
    return Permutation(n, seed, owner, epoch)


class HeldoutReader:
    """The held-out sequences, in the order of their documents.

    Raises:
        CorpusError: not built, truncated, or shorter than one sequence.
    """

    def __init__(self, store: Store, sequence_length: int) -> None:
        self.sequence_length = sequence_length
        self._tokens = TokenSet(store, HELDOUT)
        self.n_sequences = (self._tokens.n_tokens - 1) // sequence_length
        if self.n_sequences < 1:
            raise CorpusError(
                f"the corpus is too small for the held-out split: its {self._tokens.n_tokens} tokens are less than "
                f"one sequence of {sequence_length + 1}; raise corpus.heldout_fraction or add documents"
            )

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token, separators counted: loss / ln 2 / this = bits per byte."""
        return self._tokens.manifest.bytes / self._tokens.manifest.tokens

    def batches(self, sequences_per_batch: int, max_sequences: int | None = None) -> Iterator[np.ndarray]:
        """int64 arrays (at most sequences_per_batch, sequence_length + 1), the first `max_sequences` in all."""
        n = self.n_sequences if max_sequences is None else min(self.n_sequences, max_sequences)
        for low in range(0, n, sequences_per_batch):
            sequences = np.arange(low, min(low + sequences_per_batch, n))
            out = np.empty((sequences.size, self.sequence_length + 1), dtype=np.int64)
            self._tokens.fill(out, sequences * self.sequence_length)
            yield out
