"""A checkpoint's Hugging Face folder, to a folder or to the hub."""

import tempfile
from pathlib import Path

from curtail_pipeline.errors import SettingsError, StoreError
from curtail_pipeline.stages.card import card_of
from curtail_pipeline.stages.project import Project

HUB = "hf://"


def export_checkpoint(project: Project, key: str, destination: str) -> str:
    """Copy a checkpoint with its model card; where it is then.

    Args:
        destination: a folder that does not exist yet, relative to the experiment's home, or `hf://owner/name`, which is
            made (private) where it is not there. The hub's token is that of `hf auth login` or `HF_TOKEN`.

    Raises:
        SettingsError: no destination.
        StoreError: the checkpoint is corrupt or not accounted, the folder exists, or the hub refused.
    """
    if not destination.strip():
        raise SettingsError(f"no destination for {key}; give a folder, or hf://owner/name")
    if not destination.startswith(HUB):
        folder = project.home.root / destination
        project.checkpoints.export(key, folder, card_of(project, key))
        return str(folder)
    repo = destination.removeprefix(HUB).strip("/")
    if repo.count("/") != 1:
        raise SettingsError(f"{destination!r} names no repository; write hf://owner/name")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / key
        project.checkpoints.export(key, folder, card_of(project, key))
        try:
            api = HfApi()
            api.create_repo(repo, private=True, exist_ok=True)
            commit = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=key)
        except (HfHubHTTPError, OSError, ValueError) as error:
            raise StoreError(f"{key} was not uploaded to {repo}: {' '.join(str(error).split())[:300]}") from error
    return str(commit.commit_url)
