"""Which documents are held out, and which site each other one is dealt to.

Both follow from a hash of the document's text alone, so that adding documents moves none, and a document that occurs
twice is on one side only. The shares of the sites are frozen in `corpus/manifest.json`; other shares are another
dealing, which needs another experiment home.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from curtail_pipeline.corpus.config import CorpusSettings
from curtail_pipeline.corpus.sources import Slice, Source, SourceFile, open_source
from curtail_pipeline.corpus.tokenizer import TokenizerInfo, tokenizer_info
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.storage.store import Store, canonical_json

MANIFEST = "corpus/manifest.json"
TOKENIZER = "corpus/tokenizer"
HELDOUT = "heldout"


def document_hashes(texts: Sequence[str]) -> np.ndarray:
    """(n, 2) uint64: one number that decides held-out or not, one that decides the site."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return np.frombuffer(digests, dtype="<u8").reshape(-1, 2)


def heldout_mask(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Which documents are held out; those of a smaller fraction are among those of a larger one."""
    return hashes[:, 0] < np.uint64(int(fraction * 2.0**64))


@dataclass(frozen=True)
class Dealing:
    """The frozen corpus: text, tokenizer, held-out split and shares."""

    source: Source
    tokenizer: TokenizerInfo
    heldout_fraction: float
    shares: dict[str, float]
    """Site -> share of the training documents; they sum to 1."""
    shard_tokens: int
    max_document_bytes: int

    @property
    def sha256(self) -> str:
        return hashlib.sha256(canonical_json(self.to_json())).hexdigest()

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.shares)

    def targets(self, texts: Sequence[str]) -> np.ndarray:
        """Per document the index of its site in `sites`, or -1 for held-out."""
        hashes = document_hashes(texts)
        bounds = np.cumsum(list(self.shares.values()))[:-1]
        sites = np.searchsorted(bounds, hashes[:, 1].astype(np.float64) / 2.0**64, side="right")
        return np.where(heldout_mask(hashes, self.heldout_fraction), -1, sites)

    def target(self, name: str) -> int:
        """The number that `targets` gives for a site or `heldout`.

        Raises:
            CorpusError: no such site in this dealing.
        """
        if name == HELDOUT:
            return -1
        if name not in self.shares:
            raise CorpusError(
                f"unknown site {name!r} in a shard request; the corpus was dealt to {', '.join(self.sites)}"
            )
        return self.sites.index(name)

    def to_json(self) -> dict[str, Any]:
        return {
            "format": 1,
            **self.source.to_json(),
            "tokenizer": self.tokenizer.to_json(),
            "dtype": self.tokenizer.dtype,
            "heldout_fraction": self.heldout_fraction,
            "shares": [[site, share] for site, share in self.shares.items()],
            "shard_tokens": self.shard_tokens,
            "max_document_bytes": self.max_document_bytes,
        }


def make_dealing(settings: CorpusSettings, store: Store, shares: Mapping[str, float]) -> Dealing:
    """The dealing that settings and shares describe; nothing is written."""
    whole = sum(shares.values())
    if not shares or min(shares.values()) <= 0:
        raise CorpusError(f"shares {dict(shares)} cannot deal the corpus; give every site a share above 0")
    info = tokenizer_info(store.path(TOKENIZER), settings.separator)
    return Dealing(
        source=open_source(settings, store),
        tokenizer=info,
        heldout_fraction=settings.heldout_fraction,
        shares={site: shares[site] / whole for site in shares},
        shard_tokens=settings.shard_tokens,
        max_document_bytes=int(settings.max_document_mib * 2**20),
    )


def freeze_dealing(settings: CorpusSettings, store: Store, shares: Mapping[str, float]) -> Dealing:
    """Write `corpus/manifest.json`, once.

    Raises:
        CorpusError: the tokenizer is missing, or another dealing is frozen already; nothing is overwritten.
    """
    dealing = make_dealing(settings, store, shares)
    if store.exists(MANIFEST):
        frozen, wanted = store.read_json(MANIFEST), dealing.to_json()
        changed = [key for key in wanted if frozen.get(key) != wanted[key]]
        if changed:
            raise CorpusError(
                f"the corpus is already dealt, with another {changed[0]}: {_short(frozen.get(changed[0]))} instead of "
                f"{_short(wanted[changed[0]])}; shards of two dealings cannot be mixed: restore it, or use another "
                "experiment name"
            )
    else:
        store.write_json(MANIFEST, dealing.to_json())
    return dealing


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 160 else text[:157] + "..."


def load_dealing(settings: CorpusSettings, store: Store) -> Dealing:
    """The frozen dealing.

    Raises:
        CorpusError: none is frozen, or its tokenizer was replaced.
    """
    if not store.exists(MANIFEST):
        raise CorpusError("the corpus has not been dealt to the sites; materialise the tokenizer first")
    content = store.read_json(MANIFEST)
    info = tokenizer_info(store.path(TOKENIZER), content["tokenizer"]["separator"])
    if info.to_json() != content["tokenizer"]:
        raise CorpusError(
            f"the tokenizer in the store has sha256 {info.sha256[:12]}, the corpus was dealt with "
            f"{content['tokenizer']['sha256'][:12]}; token shards of two tokenizers cannot be mixed: restore it"
        )
    uris = {f.name: f.uri for f in open_source(settings, store).files}
    missing = [name for name, _, _ in content["files"] if name not in uris]
    if missing:
        raise CorpusError(f"{missing[0]} of the dealt corpus is no longer in {content['source']!r}; restore it")
    source = Source(
        content["source"],
        content["text_column"],
        content["text_separator"],
        tuple(SourceFile(name, uris[name], size, rows) for name, size, rows in content["files"]),
        tuple(Slice(*part) for part in content["slices"]),
    )
    return Dealing(
        source,
        info,
        content["heldout_fraction"],
        dict(content["shares"]),
        content["shard_tokens"],
        content["max_document_bytes"],
    )
