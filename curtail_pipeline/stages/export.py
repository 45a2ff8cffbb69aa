"""A checkpoint's Hugging Face folder, to a folder or to the hub."""

import os
import tempfile
from pathlib import Path

from curtail_pipeline.errors import SettingsError, StoreError
from curtail_pipeline.stages.card import card_of
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.folder_store import is_uri
from curtail_pipeline.storage.home import URI_FILE

HUB = "hf://"
OWN_NAMES = ("store", "dagster", "federation", "ui", "experiment.yaml", "run.pid", URI_FILE)
"""Of a home, whether they are there yet or not: nobody else's to make or to add to. So are hidden ones, its locks."""
REFUSED = {
    401: "the hub does not know the token: set another HF_TOKEN, or run `hf auth login`",
    403: "give a repository of your own, or a token that may write to this one",
}
"""What to do, by status."""
UNREACHED = "check the network, and HF_ENDPOINT if it is set"


def in_home(project: Project, destination: str) -> str:
    """A destination from the web UI, where whoever sees it may write to the home and to the hub and nowhere else.

    Raises:
        SettingsError: a folder outside the home, or one that the home has for itself.
    """
    if not destination.strip() or is_uri(destination):
        return destination
    root = project.home.root
    folder = (root / destination).resolve()
    name = next(iter(folder.relative_to(root).parts), "") if folder.is_relative_to(root) else ""
    if not name or name in OWN_NAMES or name.startswith("."):
        raise SettingsError(
            f"{destination!r} is no folder for what the web UI exports; give a new one in {root}, beside "
            f"{', '.join(OWN_NAMES)}, or export with `curtail checkpoints export`, which takes any"
        )
    return destination


def export_checkpoint(project: Project, key: str, destination: str) -> str:
    """Copy a checkpoint with its model card; where it is then.

    Args:
        destination: a folder that does not exist yet, relative to the experiment's home, or `hf://owner/name`, which is
            made (private) where it is not there. The hub's token is that of `hf auth login` or `HF_TOKEN`.

    Raises:
        SettingsError: no destination.
        StoreError: the checkpoint is corrupt or not accounted, the folder exists, there is no token, or the hub refused
            or cannot be reached.
    """
    if not destination.strip():
        raise SettingsError(f"no destination for {key}; give a folder, or hf://owner/name")
    if is_uri(destination) and not destination.startswith(HUB):
        raise SettingsError(f"{destination!r} is neither a folder nor hf://owner/name, to which {key} can be exported")
    if not destination.startswith(HUB):
        folder = project.home.root / destination
        project.checkpoints.export(key, folder, card_of(project, key))
        return str(folder)
    repo = destination.removeprefix(HUB).strip("/")
    if repo.count("/") != 1:
        raise SettingsError(f"{destination!r} names no repository; write hf://owner/name")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / key
        project.checkpoints.export(key, folder, card_of(project, key))
        return _upload(folder, key, repo)


def _upload(folder: Path, key: str, repo: str) -> str:
    import httpx2
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise StoreError(f"{key} was not uploaded to {repo}: there is no token; set HF_TOKEN, or run `hf auth login`")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=key)
    except (httpx2.HTTPError, OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error  # of one file of many
        if isinstance(cause, HfHubHTTPError):
            why = f"{_one_line(cause)}; {REFUSED.get(cause.response.status_code, 'try again later')}"
        else:
            why = f"{api.endpoint} cannot be reached ({_one_line(cause)}); {UNREACHED}"
        raise StoreError(f"{key} was not uploaded to {repo}: {why}") from error
    return str(commit.commit_url)


def _one_line(error: BaseException) -> str:
    """The hub's own words without the links to explanations."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and "developer.mozilla.org" not in line]
    return " ".join(lines)[:300].rstrip(".") or type(error).__name__
