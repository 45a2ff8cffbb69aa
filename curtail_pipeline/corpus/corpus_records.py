"""What the corpus writes for another process to read: the dealing, shards, unfinished builds, and orders to workers."""

from typing import Literal

from curtail_pipeline.corpus.documents import ReadCounts
from curtail_pipeline.corpus.encoder import Engine
from curtail_pipeline.corpus.sources import Slice
from curtail_pipeline.corpus.tokenizer import TokenDtype, TokenizerInfo
from curtail_pipeline.storage.records import Message, Record, Sha256


class DealtFile(Record):
    """A file of the source as it was when the corpus was dealt."""

    name: str
    """Relative to the source."""
    bytes: int
    rows: int | None
    """Of a .parquet file."""


class DealingRecord(Message):
    """`corpus/manifest.json`: what is dealt, and to whom."""

    source: str
    text_column: str
    text_separator: str | None
    document_chars: int
    max_documents: int | None
    files: tuple[DealtFile, ...]
    slices: tuple[Slice, ...]
    tokenizer: TokenizerInfo
    heldout_fraction: float
    shares: tuple[tuple[str, float], ...]
    """(site, share of the training documents) in the order of the sites, which decides with them."""
    shard_tokens: int


class ShardFile(Record):
    name: str
    tokens: int
    sha256: Sha256
    blocks: tuple[Sha256, ...] = ()
    """Of every `block_digests.BLOCK` bytes, the last one shorter; not there in what an earlier version wrote."""


class ShardManifest(Message):
    """`shards/<site>/manifest.json` and `heldout/manifest.json`; the files follow from it and the text alone."""

    target: str
    """A site, or `heldout`."""
    dealing_sha256: Sha256
    tokenizer_sha256: Sha256
    vocab_size: int
    separator_id: int
    dtype: TokenDtype
    engine: Engine
    documents: int
    bytes: int
    """Of the documents in UTF-8."""
    tokens: int
    """Separators counted."""
    files: tuple[ShardFile, ...]
    slices: tuple[Slice, ...]
    counts: ReadCounts
    """In the whole text, not only in what is dealt to this target."""


class EngineChoice(Message):
    """`corpus/engine.json`: written where `fastokens` cannot stand in for `tokenizers`."""

    engine: Literal["tokenizers"] = "tokenizers"
    reason: str


class Part(Record):
    """What one slice has for one target."""

    documents: int
    bytes: int
    tokens: int


class SliceTokens(Record):
    """A slice that was tokenised."""

    counts: ReadCounts
    parts: dict[str, Part]
    """By target."""


class SliceFailure(Record):
    """A slice that could not be."""

    error: str
    kind: Literal["corpus", "encoding differs"]


class TokeniseOrder(Message):
    """What a worker builds from: its first line."""

    dealing: DealingRecord
    uris: tuple[str, ...]
    """Where each of the dealt files is."""
    tokenizer: str
    """A folder."""
    engine: Engine


class SliceOrder(Message):
    """A slice to tokenise, and per target the path of the part to write."""

    unit: int
    parts: dict[str, str]


class SliceAnswer(Message):
    """A worker's answer to a `SliceOrder`."""

    result: SliceTokens | SliceFailure


class WaitingPart(Message):
    """`parts/NNNNNNNN.json`: a part that waits for the slices before it."""

    part: Part
    counts: ReadCounts


class Joined(Message):
    """`state.json`: how far the slices of one target are joined; nothing on disk is trusted beyond it."""

    slices: int = 0
    """The number of slices joined, which are the first ones."""
    part: Part = Part(documents=0, bytes=0, tokens=0)
    """The sums over them."""
    counts: ReadCounts = ReadCounts()

    def with_next(self, added: WaitingPart) -> "Joined":
        ours, theirs = self.part, added.part
        return Joined(
            slices=self.slices + 1,
            part=Part(
                documents=ours.documents + theirs.documents,
                bytes=ours.bytes + theirs.bytes,
                tokens=ours.tokens + theirs.tokens,
            ),
            counts=self.counts.plus(added.counts),
        )
