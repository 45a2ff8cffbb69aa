"""Real text for corpus tests: the sources of some standard library packages."""

import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import polars as pl

from curtail_pipeline.corpus.build import Progress, build_targets
from curtail_pipeline.corpus.corpus_records import ShardManifest
from curtail_pipeline.corpus.dealing import HELDOUT, freeze_dealing
from curtail_pipeline.corpus.shard_set import build_tokenizer
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.folder_store import FolderStore

SHARES = {"A": 2.0, "B": 1.0, "C": 1.0}


@cache
def texts() -> tuple[str, ...]:
    """About 300 documents, 0.6 MB: every file cut into paragraphs of some lines."""
    root = Path(sysconfig.get_path("stdlib"))
    lines = [
        line
        for name in ("email", "http", "json", "logging", "unittest")
        for path in sorted((root / name).glob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
    ]
    return tuple(text for at in range(0, len(lines), 60) if (text := "".join(lines[at : at + 60])).strip())


def write_corpus(path: Path, documents: tuple[str, ...] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"text": documents or texts()}).write_parquet(path)
    return path


def corpus_settings(source: Path, **changes: object) -> CorpusSettings:
    values = {"source": str(source), "vocab_size": 1024, "sample_mib": 0.2, "heldout_fraction": 0.05} | changes
    return CorpusSettings.model_validate(values)


def build_shards(
    settings: CorpusSettings, store: FolderStore, shares: Mapping[str, float], progress: Progress | None = None
) -> dict[str, ShardManifest]:
    """Tokenizer, dealing, and the shards of all sites and of the held-out text. Returns manifests by target."""
    build_tokenizer(settings, store)
    freeze_dealing(settings, store, shares)
    return build_targets(settings, store, [*shares, HELDOUT], progress)


def built_store(folder: Path, **changes: object) -> tuple[CorpusSettings, FolderStore]:
    """A store with tokenizer, dealing and all shards of `texts()`."""
    settings = corpus_settings(write_corpus(folder / "text" / "a.parquet"), **changes)
    store = FolderStore(folder / "store")
    build_shards(settings, store, SHARES)
    return settings, store
