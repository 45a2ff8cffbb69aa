"""Token shards: `shards/<site>/NNNNN.bin` and `heldout/NNNNN.bin`, raw little-endian ids, with a manifest each.

The manifest is written last; a folder without one does not count. Bytes follow from the frozen dealing alone, so that
building again gives the same files.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from curtail_pipeline.corpus.config import CorpusSettings
from curtail_pipeline.corpus.dealing import (
    HELDOUT,
    TOKENIZER,
    Dealing,
    document_hashes,
    freeze_dealing,
    heldout_mask,
    load_dealing,
)
from curtail_pipeline.corpus.encoder import Encoder, with_separator
from curtail_pipeline.corpus.sources import Counts, open_source
from curtail_pipeline.corpus.tokenizer import TokenizerInfo, load_tokenizer, tokenizer_info, train_tokenizer
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.storage.store import Store, file_sha256

log = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with (slices done, slices in all)."""


def folder_of(target: str) -> str:
    """Store key of the shards of a site, or of the held-out text."""
    return HELDOUT if target == HELDOUT else f"shards/{target}"


def _sample(settings: CorpusSettings, store: Store) -> Iterator[str]:
    source = open_source(settings, store)
    room = int(settings.sample_mib * 2**20)
    for part in source.slices:
        for texts in source.read(part, Counts()):
            for text, out in zip(texts, heldout_mask(document_hashes(texts), settings.heldout_fraction), strict=True):
                if out:
                    continue
                yield text[:room]
                room -= len(text.encode())
                if room <= 0:
                    return


def build_tokenizer(settings: CorpusSettings, store: Store) -> TokenizerInfo:
    """Train or load the tokenizer into `corpus/tokenizer/`; one that is there already is kept.

    Raises:
        CorpusError: an empty or unreadable corpus, or a tokenizer that cannot be loaded.
    """
    folder = store.path(TOKENIZER)
    if (folder / "tokenizer.json").exists():
        return tokenizer_info(folder, settings.separator)
    if settings.tokenizer is not None:
        return load_tokenizer(settings, folder)
    return train_tokenizer(settings, folder, _sample(settings, store))


def build_site_shards(
    settings: CorpusSettings, store: Store, site: str, progress: Progress | None = None
) -> dict[str, Any]:
    """Build one site's shards; the same bytes whenever it is built. Returns the manifest.

    Raises:
        CorpusError: an unknown site, no text for it, or text that changed since it was dealt.
    """
    return _build(settings, store, site, progress)


def build_heldout(settings: CorpusSettings, store: Store, progress: Progress | None = None) -> dict[str, Any]:
    """Build the shards of the held-out documents. Returns the manifest."""
    return _build(settings, store, HELDOUT, progress)


def build_shards(
    settings: CorpusSettings, store: Store, shares: Mapping[str, float], progress: Progress | None = None
) -> dict[str, dict[str, Any]]:
    """Tokenizer, dealing, shards of every site and of the held-out text. Returns the manifests by target."""
    build_tokenizer(settings, store)
    freeze_dealing(settings, store, shares)
    return {target: _build(settings, store, target, progress) for target in (*shares, HELDOUT)}


def _build(settings: CorpusSettings, store: Store, target: str, progress: Progress | None) -> dict[str, Any]:
    dealing = load_dealing(settings, store)
    wanted = dealing.target(target)
    encoder = Encoder(store.path(TOKENIZER))
    counts, documents, size = Counts(), 0, 0
    parts: list[np.ndarray] = []
    for done, part in enumerate(dealing.source.slices, 1):
        for texts in dealing.source.read(part, counts):
            chosen = [text for text, to in zip(texts, dealing.targets(texts), strict=True) if to == wanted]
            if chosen:
                ids, offsets = encoder.encode(chosen)
                parts.append(with_separator(ids, offsets, dealing.tokenizer.separator_id, dealing.tokenizer.dtype))
                documents += len(chosen)
                size += sum(len(text.encode()) for text in chosen)
        if progress:
            progress(done, len(dealing.source.slices))
    if not documents:
        raise CorpusError(_nothing(dealing, target, counts))
    tokens = np.concatenate(parts)
    files = []
    for start in range(0, tokens.size, dealing.shard_tokens):
        name = f"{start // dealing.shard_tokens:05d}.bin"
        data = tokens[start : start + dealing.shard_tokens].tobytes()
        store.write_bytes(f"{folder_of(target)}/{name}", data)
        files.append({"name": name, "tokens": len(data) // tokens.itemsize, "sha256": hashlib.sha256(data).hexdigest()})
    manifest = {
        "format": 1,
        "target": target,
        "dealing_sha256": dealing.sha256,
        "tokenizer_sha256": dealing.tokenizer.sha256,
        "vocab_size": dealing.tokenizer.vocab_size,
        "separator_id": dealing.tokenizer.separator_id,
        "dtype": dealing.tokenizer.dtype,
        "documents": documents,
        "bytes": size,
        "tokens": int(tokens.size),
        "files": files,
        "read": vars(counts),
    }
    store.write_json(f"{folder_of(target)}/manifest.json", manifest)
    return manifest


def _nothing(dealing: Dealing, target: str, counts: Counts) -> str:
    if not counts.documents:
        return f"corpus.source {dealing.source.text!r} has no document with text; name another source or text_column"
    if target == HELDOUT:
        return (
            f"the corpus is too small for the held-out split: none of {counts.documents} documents falls into the "
            f"fraction {dealing.heldout_fraction}; raise corpus.heldout_fraction or add documents"
        )
    return f"none of {counts.documents} documents is dealt to {target}; add documents or raise its share"


def verify_shard(store: Store, target: str) -> dict[str, Any]:
    """Read a site's (or `heldout`'s) shard files and compare them with their manifest, which is returned.

    Raises:
        CorpusError: a missing, truncated or changed file, by name.
    """
    folder = folder_of(target)
    manifest: dict[str, Any] = load_manifest(store, target)
    for entry in manifest["files"]:
        path = store.path(f"{folder}/{entry['name']}")
        if not path.exists() or file_sha256(path) != entry["sha256"]:
            state = "has changed" if path.exists() else "is missing"
            raise CorpusError(f"shard {folder}/{entry['name']} {state}; materialise {target} again to restore it")
    return manifest


def load_manifest(store: Store, target: str) -> dict[str, Any]:
    """The shard manifest of a site or of the held-out text.

    Raises:
        CorpusError: not built; the message lists what is.
    """
    key = f"{folder_of(target)}/manifest.json"
    if not store.exists(key):
        built = [name for name in store.list("shards") if store.exists(f"shards/{name}/manifest.json")]
        raise CorpusError(f"no token shards of {target!r}; built are {', '.join(built) or 'none'}: build it first")
    content = store.read_json(key)
    assert isinstance(content, dict)
    return content


def check_model_vocab(manifest: Mapping[str, Any], model_vocab_size: int) -> None:
    """Refuse a model whose embedding cannot hold every token of the shards.

    Raises:
        CorpusError: it cannot.
    """
    if manifest["vocab_size"] > model_vocab_size:
        raise CorpusError(
            f"the tokenizer has {manifest['vocab_size']} tokens, the model {model_vocab_size}; set corpus.vocab_size "
            "to the model's or training.model_overrides.vocab_size to the tokenizer's"
        )
