"""Links from what the UI shows to the code that makes it."""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from dagster._core.definitions.assets.definition.cacheable_assets_definition import CacheableAssetsDefinition

from curtail_pipeline.errors import SettingsError

REPOSITORY_ENV = "CURTAIL_REPOSITORY"
"""`https://host/owner/name`, or with `@branch` at the end (`main` without it): where the code can be read."""
ANCHOR = Path(__file__)
ANCHOR_PATH = "curtail_pipeline/orchestration/code_links.py"

Assets = Sequence[dg.AssetsDefinition | dg.SourceAsset | CacheableAssetsDefinition | dg.AssetSpec]
"""What Dagster loads from modules."""


def with_code_links(assets: Assets) -> Assets:
    """The assets with links to their lines in the repository, or to the files of this machine without one.

    Raises:
        SettingsError: the repository's address is no URL that Dagster can link into.
    """
    repository = os.environ.get(REPOSITORY_ENV)
    with warnings.catch_warnings():
        # Preview and beta in Dagster 1.13; the links are an addition that nothing depends on.
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        linked = dg.with_source_code_references(assets)
        if not repository:
            return linked
        url, _, branch = repository.partition("@")
        try:
            return dg.link_code_references_to_git(
                linked, url, branch or "main", dg.AnchorBasedFilePathMapping(ANCHOR, ANCHOR_PATH)
            )
        except Exception as error:
            raise SettingsError(
                f"{REPOSITORY_ENV}={repository!r}: {error}; give https://github.com/OWNER/NAME or a GitLab address"
            ) from error
