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
    chosen = _Pattern(pattern)
    pages = _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=chosen.prefix)
    return [
        (chosen.name(item["Key"]), f"s3://{bucket}/{item['Key']}", int(item["Size"]))
        for page in pages
        for item in page.get("Contents", ())
        if chosen.matches(item["Key"])
    ]


def glob_prefix(pattern: str) -> str:
    """What comes before the first wild card."""
    wild = _WILD.search(pattern)
    return pattern[: wild.start()] if wild else pattern


class _Pattern:
    """A key, the folder of that name, or a glob."""

    def __init__(self, pattern: str) -> None:
        wild = glob_prefix(pattern) != pattern
        self.prefix = glob_prefix(pattern) if wild else pattern.rstrip("/")
        self.folder = self.prefix.rpartition("/")[0] if wild else self.prefix
        self._glob = re.compile(_glob_regex(pattern)) if wild else None

    def matches(self, key: str) -> bool:
        if self._glob is not None:
            return bool(self._glob.fullmatch(key))
        return not self.prefix or key == self.prefix or key.startswith(self.prefix + "/")

    def name(self, key: str) -> str:
        """Relative to the folder."""
        return key.removeprefix(self.folder).lstrip("/") or key.rpartition("/")[2]


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


def _hub_path(uri: str) -> str:
    if uri.startswith("hf://"):
        return uri.removeprefix("hf://")
    return re.sub(r"/resolve/([^/]+)/", lambda m: f"@{m[1]}/", uri.removeprefix(_endpoint() + "/"), count=1)


def _list_hf(source: str) -> list[tuple[str, str, int]]:
    from huggingface_hub import HfApi

    kind, owner, repository, pattern = [*source.removeprefix("hf://").split("/", 3), "", "", ""][:4]
    if kind != "datasets" or not repository:
        raise CorpusError(f"corpus.source {source!r} is no data set; write hf://datasets/OWNER/NAME/PATH")
    name, _, revision = repository.partition("@")
    chosen = _Pattern(pattern)
    entries = HfApi(endpoint=_endpoint()).list_repo_tree(
        f"{owner}/{name}", recursive=True, revision=revision or None, repo_type="dataset"
    )
    return [
        (chosen.name(entry.path), _hub_uri(f"{kind}/{owner}/{repository}", entry.path), int(entry.size))
        for entry in entries
        if hasattr(entry, "size") and chosen.matches(entry.path)
    ]


def _hub_uri(root: str, inside: str) -> str:
    """polars knows `hf://` on the hub itself; a mirror is read by its plain address."""
    if _endpoint() == HUB:
        return f"hf://{root}/{inside}"
    repository, _, revision = root.partition("@")
    return f"{_endpoint()}/{repository}/resolve/{revision or 'main'}/{inside}"
