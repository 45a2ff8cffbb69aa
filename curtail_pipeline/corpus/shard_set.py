"""Token shards: `shards/<site>/NNNNN.bin` and `heldout/NNNNN.bin`, raw little-endian ids, with a manifest each.

The manifest is written last; a folder without one does not count. Bytes follow from the frozen dealing alone, so that
building again gives the same files. These are the functions that assets and commands call, in this order:
`build_tokenizer`, `dealing.freeze_dealing`, then `build_site_shards` and `build_heldout`.
"""

from collections.abc import Iterator

from curtail_pipeline.corpus.build import Progress, build_targets, manifest_key, stored_manifest
from curtail_pipeline.corpus.corpus_records import ShardManifest
from curtail_pipeline.corpus.dealing import HELDOUT, TOKENIZER, Hasher
from curtail_pipeline.corpus.documents import Counts
from curtail_pipeline.corpus.sources import open_source
from curtail_pipeline.corpus.tokenizer import TokenizerInfo, load_tokenizer, tokenizer_info, train_tokenizer
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.store import Store

SAMPLED_SLICES = 64
"""The tokenizer's sample is taken from the beginnings of so many slices, evenly over the corpus."""


def training_sample(settings: CorpusSettings, store: Store) -> Iterator[str]:
    """Documents to train the tokenizer on, at most `sample_mib` of UTF-8 in all and none of them held out."""
    source = open_source(settings, store)
    step = -(-len(source.slices) // SAMPLED_SLICES)
    chosen = source.slices[::step]
    for number, part in enumerate(chosen):
        room = int(settings.sample_mib * 2**20) * (number + 1) // len(chosen)
        room -= int(settings.sample_mib * 2**20) * number // len(chosen)
        hasher = Hasher()
        for pieces in source.read(part, Counts()):
            keys = hasher(pieces)
            for (text, _), size, out in zip(pieces, keys.sizes, keys.heldout(settings.heldout_fraction), strict=True):
                if not out and room > 0:
                    yield text[:room]
                    room -= int(size)
            if room <= 0:
                break


def build_tokenizer(settings: CorpusSettings, store: Store) -> TokenizerInfo:
    """Train or load the tokenizer into `corpus/tokenizer/`; one that is there already is kept.

    Raises:
        CorpusError: an empty or unreadable corpus, or a tokenizer that cannot be loaded.
    """
    folder = store.mirror(TOKENIZER)
    if (folder / "tokenizer.json").exists():
        return tokenizer_info(folder, settings.separator)
    if settings.tokenizer is not None:
        info = load_tokenizer(settings, folder)
    else:
        info = train_tokenizer(settings, folder, training_sample(settings, store))
    store.publish(TOKENIZER, last="tokenizer.json")
    return info


def build_site_shards(
    settings: CorpusSettings, store: Store, site: str, progress: Progress | None = None
) -> ShardManifest:
    """Build one site's shards; the same bytes whenever it is built. Returns the manifest.

    Raises:
        CorpusError: an unknown site, no text for it, or text that changed since it was dealt.
    """
    return build_targets(settings, store, [site], progress)[site]


def build_heldout(settings: CorpusSettings, store: Store, progress: Progress | None = None) -> ShardManifest:
    """Build the shards of the held-out documents. Returns the manifest.

    Raises:
        CorpusError: no document is held out, or the text changed since it was dealt.
    """
    return build_targets(settings, store, [HELDOUT], progress)[HELDOUT]


def load_manifest(store: Store, target: str) -> ShardManifest:
    """The shard manifest of a site or of the held-out text.

    Raises:
        CorpusError: not built; the message lists what is.
    """
    manifest = stored_manifest(store, target)
    if manifest is None:
        built = [name for name in store.list("shards") if store.exists(manifest_key(name))]
        raise CorpusError(f"no token shards of {target!r}; built are {', '.join(built) or 'none'}: build it first")
    return manifest
