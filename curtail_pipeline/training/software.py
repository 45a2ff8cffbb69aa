"""What a site works with, as it says in its results."""

from curtail_pipeline.storage.package_versions import versions
from curtail_pipeline.storage.store import Store


def made_with(store: Store, site: str) -> dict[str, str]:
    """Versions of its packages, and sha256 of its `corpus` (its dealing) and `tokenizer` where shards are there."""
    from curtail_pipeline.corpus.build import stored_manifest

    manifest = stored_manifest(store, site)
    text = {"corpus": manifest.dealing_sha256, "tokenizer": manifest.tokenizer_sha256} if manifest else {}
    return versions() | text
