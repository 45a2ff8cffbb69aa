"""Versions of what a result depends on."""

import importlib.metadata
import platform
from contextlib import suppress

_PACKAGES = ("curtail_pipeline", "torch", "transformers", "tokenizers", "safetensors", "flwr", "dagster", "polars")


def versions() -> dict[str, str]:
    """Of Python and of those packages that are installed here."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
