"""Which documents are held out, and which site each other one is dealt to.

Both follow from a hash of the document's text alone (of its first piece, where it is cut), so that adding documents
moves none, and a document that occurs twice is on one side only. Text, tokenizer and the sites' shares are frozen in
`corpus/manifest.json`; another dealing needs another experiment home.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from curtail_pipeline.corpus.corpus_records import DealingRecord, DealtFile
from curtail_pipeline.corpus.documents import Counts, Piece, SourceFile, TextFormat
from curtail_pipeline.corpus.sources import Slice, Source, list_files, open_source, text_form
from curtail_pipeline.corpus.tokenizer import TokenizerInfo, tokenizer_info
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.store import Store, canonical_json

log = logging.getLogger(__name__)

MANIFEST = "corpus/manifest.json"
TOKENIZER = "corpus/tokenizer"
HELDOUT = "heldout"


@dataclass(frozen=True)
class Keys:
    """What decides about a batch of pieces of documents."""

    split: np.ndarray
    """(n,) uint64, against the held-out fraction."""
    site: np.ndarray
    """(n,) uint64, against the shares."""
    sizes: np.ndarray
    """(n,) int64, UTF-8 bytes."""

    def heldout(self, fraction: float) -> np.ndarray:
        """(n,) bool; what a smaller fraction holds out, a larger one does too."""
        return self.split < np.uint64(int(fraction * 2.0**64))


class Hasher:
    """Keys of pieces in reading order; a piece that goes on a document has the key of the document's first."""

    def __init__(self) -> None:
        self._last = bytes(16)

    def __call__(self, pieces: Sequence[Piece]) -> Keys:
        digests, sizes = [], []
        for text, goes_on in pieces:
            data = text.encode()
            if not goes_on:
                self._last = hashlib.blake2b(data, digest_size=16).digest()
            digests.append(self._last)
            sizes.append(len(data))
        numbers = np.frombuffer(b"".join(digests), dtype="<u8").reshape(-1, 2)
        return Keys(numbers[:, 0], numbers[:, 1], np.array(sizes, dtype=np.int64))


@dataclass(frozen=True)
class Dealing:
    """The frozen corpus: text, tokenizer, held-out split and shares."""

    source: Source
    tokenizer: TokenizerInfo
    heldout_fraction: float
    shares: dict[str, float]
    """Site -> share of the training documents; they sum to 1."""
    shard_tokens: int

    max_documents: int | None
    """At which the source was cut off."""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(canonical_json(self.record().model_dump(mode="json"))).hexdigest()

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.shares)

    def read(self, part: Slice, counts: Counts) -> Iterator[tuple[list[str], Keys, np.ndarray]]:
        """Batches of (texts, keys, target numbers) of a slice; a target is a site's index in `sites`, or -1."""
        hasher = Hasher()
        bounds = np.cumsum(list(self.shares.values()))[:-1]
        for pieces in self.source.read(part, counts):
            keys = hasher(pieces)
            sites = np.searchsorted(bounds, keys.site.astype(np.float64) / 2.0**64, side="right")
            yield [text for text, _ in pieces], keys, np.where(keys.heldout(self.heldout_fraction), -1, sites)

    def number(self, target: str) -> int:
        """The number that `read` gives for a site or `heldout`.

        Raises:
            CorpusError: no such site in this dealing.
        """
        if target == HELDOUT:
            return -1
        if target not in self.shares:
            raise CorpusError(
                f"unknown site {target!r} in a shard request; the corpus was dealt to {', '.join(self.sites)}"
            )
        return self.sites.index(target)

    def record(self) -> DealingRecord:
        source, form = self.source, self.source.form
        return DealingRecord(
            source=source.text,
            text_column=form.column,
            text_separator=form.separator,
            document_chars=form.document_chars,
            max_documents=self.max_documents,
            files=tuple(DealtFile(name=file.name, bytes=file.bytes, rows=file.rows) for file in source.files),
            slices=source.slices,
            tokenizer=self.tokenizer,
            heldout_fraction=self.heldout_fraction,
            shares=tuple(self.shares.items()),
            shard_tokens=self.shard_tokens,
        )

    @classmethod
    def of(cls, record: DealingRecord, uris: Sequence[str]) -> "Dealing":
        """What was recorded, with the present address of each of its files."""
        return cls(
            source=Source(
                record.source,
                TextFormat(record.text_column, record.text_separator, record.document_chars),
                tuple(
                    SourceFile(file.name, uri, file.bytes, file.rows)
                    for file, uri in zip(record.files, uris, strict=True)
                ),
                record.slices,
            ),
            tokenizer=record.tokenizer,
            heldout_fraction=record.heldout_fraction,
            shares=dict(record.shares),
            shard_tokens=record.shard_tokens,
            max_documents=record.max_documents,
        )


def freeze_dealing(settings: CorpusSettings, store: Store, shares: Mapping[str, float]) -> Dealing:
    """Write `corpus/manifest.json`, once. `shares` are in any unit, e.g. each site's expected curtailed hours.

    Raises:
        CorpusError: the tokenizer is missing, a share is not above 0, or another dealing is frozen already; nothing
            is overwritten.
    """
    whole = sum(shares.values())
    if abs(whole - 1) < 1e-9:
        whole = 1.0  # shares that were frozen come back as they are, to the last bit
    if not shares or min(shares.values()) <= 0:
        raise CorpusError(f"shares {dict(shares)} cannot deal the corpus; give every site a share above 0")
    if HELDOUT in shares:
        raise CorpusError(f"no site can be called {HELDOUT!r}: its shards would be the held-out text; rename it")
    info = tokenizer_info(store.mirror(TOKENIZER), settings.separator)
    frozen = store.exists(MANIFEST)
    source = load_dealing(settings, store).source if frozen else open_source(settings, store)
    wanted = Dealing(
        source=replace(source, form=text_form(settings)),
        tokenizer=info,
        heldout_fraction=settings.heldout_fraction,
        shares={site: shares[site] / whole for site in shares},
        shard_tokens=settings.shard_tokens,
        max_documents=settings.max_documents,
    )
    record = wanted.record()
    if not frozen:
        store.write_record(MANIFEST, record)
        return wanted
    now, before = record.model_dump(), store.read_record(MANIFEST, DealingRecord).model_dump()
    changed = [key for key in now if before[key] != now[key]]
    if changed:
        raise CorpusError(
            f"the corpus is already dealt, with {changed[0]} {_short(before[changed[0]])} instead of "
            f"{_short(now[changed[0]])}; shards of two dealings cannot be mixed: restore it, or use another "
            "experiment name"
        )
    return wanted


def frozen_shares(store: Store) -> dict[str, float] | None:
    """The shares by which the corpus was dealt; None where it was not."""
    return dict(store.read_record(MANIFEST, DealingRecord).shares) if store.exists(MANIFEST) else None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 160 else text[:157] + "..."


def load_dealing(settings: CorpusSettings, store: Store) -> Dealing:
    """The frozen dealing, with the addresses that its files have now.

    Raises:
        CorpusError: none is frozen, its tokenizer was replaced, or a file is gone or of another size.
    """
    if not store.exists(MANIFEST):
        raise CorpusError(
            "the corpus has not been dealt to the sites yet; freeze the dealing first (training_shards does)"
        )
    dealt = store.read_record(MANIFEST, DealingRecord)
    if dealt.source != settings.source:
        raise CorpusError(
            f"the corpus dealt is {dealt.source!r}, the settings name {settings.source!r}; restore corpus.source, "
            "or use another experiment name"
        )
    info = tokenizer_info(store.mirror(TOKENIZER), dealt.tokenizer.separator)
    if info != dealt.tokenizer:
        raise CorpusError(
            f"the tokenizer in the store has sha256 {info.sha256[:12]}, the corpus was dealt with "
            f"{dealt.tokenizer.sha256[:12]}; token shards of two tokenizers cannot be mixed: restore it"
        )
    present = {file.name: file for file in list_files(settings, store)}
    for file in dealt.files:
        if file.name not in present or present[file.name].bytes != file.bytes:
            state = "has changed" if file.name in present else "is gone"
            raise CorpusError(
                f"{file.name} of {dealt.source!r} {state} since the corpus was dealt; restore it, or use another "
                "experiment name"
            )
    added = len(present) - len(dealt.files)
    if added:
        log.warning("%d files of %s are newer than the dealing and stay unused", added, dealt.source)
    return Dealing.of(dealt, [present[file.name].uri for file in dealt.files])
