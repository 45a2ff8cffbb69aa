"""Listing and streaming of text on `s3://` and `hf://`; tables and lines are read in place by polars.

S3 credentials, region and endpoint are boto3's (environment, profile, instance role); for Hugging Face, `HF_TOKEN`
gives access to private data sets and `HF_ENDPOINT` names a mirror.
"""

import os
import re
from typing import IO, Any, cast

from fsspec.utils import glob_translate

from curtail_pipeline.errors import CorpusError

SCHEMES = ("s3://", "hf://", "http://", "https://")
HUB = "https://huggingface.co"
_WILD = re.compile(r"[*?\[]")


def is_remote(uri: str) -> bool:
    """Whether an address is no path of this machine (a Hugging Face mirror's files are plain http addresses)."""
    return uri.startswith(SCHEMES)


def list_remote(source: str) -> list[tuple[str, str, int]]:
    """(name, uri, bytes) of every object under a prefix, or that a glob (`*`, `**`, `?`, `[...]`) matches.

    Raises:
        CorpusError: not reachable, not allowed, or not there.
    """
    try:
        return _list_s3(source) if source.startswith("s3://") else _list_hf(source)
    except CorpusError:
        raise
    except Exception as error:  # boto3, huggingface_hub and their HTTP clients each have their own hierarchy
        raise CorpusError(
            f"cannot list corpus.source {source!r} ({type(error).__name__}: {error}); check the address, the network "
            "and the credentials"
        ) from error


def open_remote(uri: str) -> IO[bytes]:
    """A byte stream of one object."""
    if uri.startswith("s3://"):
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        return cast(IO[bytes], _s3().get_object(Bucket=bucket, Key=key)["Body"])
    from huggingface_hub import HfFileSystem

    return cast(IO[bytes], HfFileSystem(endpoint=_endpoint()).open(_hub_path(uri), "rb", block_size=1 << 20))


def storage_options(uri: str) -> dict[str, str] | None:
    """What polars needs beyond the credentials it finds itself: endpoint and region of S3."""
    if not uri.startswith("s3://"):
        return None
    client = _s3()
    options = {"aws_region": client.meta.region_name or "us-east-1"}
    if _s3_endpoint_is_set():
        endpoint = client.meta.endpoint_url
        options |= {"aws_endpoint_url": endpoint, "aws_allow_http": str(endpoint.startswith("http://")).lower()}
    return options


def _s3_endpoint_is_set() -> bool:
    return bool(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL"))


def _s3() -> Any:
    import boto3  # type: ignore[import-untyped,unused-ignore]

    return boto3.client("s3")


def _list_s3(source: str) -> list[tuple[str, str, int]]:
    bucket, _, pattern = source.removeprefix("s3://").partition("/")
    prefix = glob_prefix(pattern)
    chosen = re.compile(glob_translate(pattern)) if prefix != pattern else None
    folder = prefix.rpartition("/")[0] if chosen else pattern.rstrip("/")
    pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix if chosen else folder)
    return [
        (_name_in(folder, item["Key"]), f"s3://{bucket}/{item['Key']}", int(item["Size"]))
        for page in pages
        for item in page.get("Contents", ())
        if (chosen.match(item["Key"]) if chosen else _is_in(folder, item["Key"]))
    ]


def _is_in(folder: str, key: str) -> bool:
    return not folder or key == folder or key.startswith(folder + "/")


def _name_in(folder: str, key: str) -> str:
    """A key relative to a folder; of a file that was named itself, its last part."""
    return key.removeprefix(folder).lstrip("/") or key.rpartition("/")[2]


def glob_prefix(pattern: str) -> str:
    """What comes before the first wild card."""
    wild = _WILD.search(pattern)
    return pattern[: wild.start()] if wild else pattern


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def _hub_path(uri: str) -> str:
    if uri.startswith("hf://"):
        return uri.removeprefix("hf://")
    return re.sub(r"/resolve/([^/]+)/", lambda m: f"@{m[1]}/", uri.removeprefix(_endpoint() + "/"), count=1)


def _list_hf(source: str) -> list[tuple[str, str, int]]:
    from huggingface_hub import HfFileSystem

    kind, owner, repository, pattern = [*source.removeprefix("hf://").split("/", 3), "", "", ""][:4]
    if kind != "datasets" or not repository:
        raise CorpusError(f"corpus.source {source!r} is no data set; write hf://datasets/OWNER/NAME/PATH")
    root, prefix = f"{kind}/{owner}/{repository}", glob_prefix(pattern)
    # An instance of its own: the shared one would answer from the listing of a dealing before.
    hub = HfFileSystem(endpoint=_endpoint(), skip_instance_cache=True)
    if prefix == pattern:
        folder = pattern.rstrip("/")
        found = hub.find(f"{root}/{folder}".rstrip("/"), detail=True)
    else:
        folder = prefix.rpartition("/")[0]
        found = hub.glob(f"{root}/{pattern}", detail=True, withdirs=False)
    assert isinstance(found, dict)  # with `detail`
    inside = {path.removeprefix(root + "/"): int(entry["size"]) for path, entry in found.items()}
    return [(_name_in(folder, path), _hub_uri(root, path), size) for path, size in inside.items()]


def _hub_uri(root: str, inside: str) -> str:
    """polars knows `hf://` on the hub itself; a mirror is read by its plain address."""
    if _endpoint() == HUB:
        return f"hf://{root}/{inside}"
    repository, _, revision = root.partition("@")
    return f"{_endpoint()}/{repository}/resolve/{revision or 'main'}/{inside}"
