"""Listing and streaming of text on `s3://` and `hf://`; tables and lines are read in place by polars.

S3 credentials, region and endpoint are boto3's (environment, profile, instance role); for Hugging Face, `HF_TOKEN`
gives access to private data sets and `HF_ENDPOINT` names a mirror.
"""

import os
import re
from typing import IO, Any, cast

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
    return cast(IO[bytes], _hub().open(_hub_path(uri), "rb", block_size=1 << 20))


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
    wild = _WILD.search(pattern)
    prefix = pattern[: wild.start()] if wild else pattern.rstrip("/")
    root = prefix.rpartition("/")[0] if wild else prefix
    glob = re.compile(_glob_regex(pattern))
    found = []
    for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for item in page.get("Contents", ()):
            key = item["Key"]
            if glob.fullmatch(key) if wild else (not prefix or key == prefix or key.startswith(prefix + "/")):
                name = key.removeprefix(root).lstrip("/") or key.rpartition("/")[2]
                found.append((name, f"s3://{bucket}/{key}", int(item["Size"])))
    return found


def _glob_regex(pattern: str) -> str:
    """`*` and `?` within a folder, `**/` over folders, `[...]` as in fnmatch."""
    out = ""
    for token in re.findall(r"\*\*/|\*|\?|\[[^\]]+\]|[^*?\[]+|\[", pattern):
        if token == "**/":
            out += "(?:.*/)?"
        elif token == "*":
            out += "[^/]*"
        elif token == "?":
            out += "[^/]"
        elif token.startswith("[") and token.endswith("]"):
            out += token.replace("[!", "[^")
        else:
            out += re.escape(token)
    return out


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def _hub() -> Any:
    from huggingface_hub import HfFileSystem

    return HfFileSystem(endpoint=_endpoint(), token=os.environ.get("HF_TOKEN"))


def _hub_path(uri: str) -> str:
    if uri.startswith("hf://"):
        return uri.removeprefix("hf://")
    return re.sub(r"/resolve/([^/]+)/", lambda m: f"@{m[1]}/", uri.removeprefix(_endpoint() + "/"), count=1)


def _list_hf(source: str) -> list[tuple[str, str, int]]:
    path = source.removeprefix("hf://")
    parts = path.split("/")
    if len(parts) < 3 or parts[0] not in ("datasets", "spaces", "buckets"):
        raise CorpusError(f"corpus.source {source!r} is no hf:// address; write hf://datasets/OWNER/NAME/PATH")
    root = "/".join(parts[:3])
    hub = _hub()
    entries = hub.glob(path, detail=True) if _WILD.search(path) else hub.find(path, detail=True)
    found = []
    for name, entry in entries.items():
        if entry["type"] == "file":
            inside = name.removeprefix(root).lstrip("/")
            found.append((inside, _hub_uri(root, inside), int(entry["size"])))
    return found


def _hub_uri(root: str, inside: str) -> str:
    """polars knows `hf://` on the hub itself; a mirror is read by its plain address."""
    if _endpoint() == HUB:
        return f"hf://{root}/{inside}"
    repository, _, revision = root.partition("@")
    return f"{_endpoint()}/{repository}/resolve/{revision or 'main'}/{inside}"
