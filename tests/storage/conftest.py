from pathlib import Path

import pytest

from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    folder = tmp_path / "made"
    folder.mkdir()
    names = ["config.json", "model.safetensors", "tokenizer.json", "outer.safetensors", "plan.json", "rounds.jsonl"]
    for name in names:
        (folder / name).write_bytes(name.encode() * 100)
    return {name: folder / name for name in names}


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(FolderStore(tmp_path / "store"))
