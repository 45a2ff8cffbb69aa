"""From an address to its store."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from curtail_pipeline.errors import SettingsError, StoreError
from curtail_pipeline.storage.folder_store import FolderStore, is_uri
from curtail_pipeline.storage.store import Store

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

CACHE_ENV, CACHE_LIMIT_ENV = "CURTAIL_CACHE", "CURTAIL_CACHE_GIB"
CACHE_GIB = 50.0
"""Limit of a machine's cache where the environment gives none: some twenty sets of weights of the paper's model."""


Connect = Callable[[], "S3Client"]


def open_store(location: Path | str, connect: Connect | None = None, patience_s: float = 60.0) -> Store:
    """The store at a folder or at `s3://bucket/prefix`. Nothing is asked of a server yet.

    `CURTAIL_CACHE` names the folder of this machine's cache (`~/.cache/curtail_pipeline` when not given) and
    `CURTAIL_CACHE_GIB` its limit.

    Args:
        connect: makes the client of a bucket; with the usual AWS settings when not given.
        patience_s: how long a request to a server that fails for a passing reason is tried again.

    Raises:
        StoreError: an address of another kind.
        SettingsError: the limit of the cache is no positive number.
    """
    if not is_uri(location):
        return FolderStore(location)
    if not str(location).startswith("s3://"):
        raise StoreError(f"{str(location)!r} is not the address of a store; give a folder, or s3://bucket/prefix")
    from curtail_pipeline.storage.s3_calls import Place
    from curtail_pipeline.storage.s3_store import S3Store

    folder = os.environ.get(CACHE_ENV)
    cache = Path(folder) if folder else Path.home() / ".cache" / "curtail_pipeline"
    return S3Store(Place.parse(str(location)), cache.resolve(), cache_limit(), connect, patience_s=patience_s)


def cache_limit() -> int:
    """Bytes that a machine's cache may hold."""
    text = os.environ.get(CACHE_LIMIT_ENV) or str(CACHE_GIB)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 2**30:
        raise SettingsError(f"{CACHE_LIMIT_ENV} is {text!r}; give a number of GiB above 0, e.g. 50")
    return int(limit * 2**30)
