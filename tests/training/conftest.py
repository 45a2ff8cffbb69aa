"""A store to train on, made once."""

import shutil
from pathlib import Path

import pytest
from training_case import CONFIG, fill_store, make_experiment

from curtail_pipeline.storage.folder_store import FolderStore


@pytest.fixture(scope="session")
def filled_once(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    """To read from and to copy."""
    return fill_store(tmp_path_factory.mktemp("filled"), make_experiment())


@pytest.fixture(scope="module")
def shared(filled_once: FolderStore, tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    """A copy for the tests of a file, which leave traces of no interest to each other."""
    root = tmp_path_factory.mktemp("shared") / "store"
    shutil.copytree(filled_once.root, root)
    return FolderStore(root)


@pytest.fixture
def store(filled_once: FolderStore, tmp_path: Path) -> FolderStore:
    shutil.copytree(filled_once.root, tmp_path / "store")
    return FolderStore(tmp_path / "store")


@pytest.fixture
def vocabulary(store: FolderStore) -> int:
    real: int = store.read_json(CONFIG)["real_vocabulary"]
    return real
