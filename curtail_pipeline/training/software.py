"""What a site works with, as it says in its results."""

from curtail_pipeline.storage.package_versions import versions
from curtail_pipeline.storage.store import Store


def made_with(store: Store, site: str) -> dict[str, str]:
    """Versions of its packages, and sha256 of its `corpus` (its dealing) and `tokenizer` where shards are there.

    A site that was added later has none of its own and trains on others'.
    """
    from curtail_pipeline.corpus.build import any_manifest

    manifest = any_manifest(store, site)
    text = {"corpus": manifest.dealing_sha256, "tokenizer": manifest.tokenizer_sha256} if manifest else {}
    return versions() | text
