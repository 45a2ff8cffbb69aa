"""A local federation with stubs for trainers, for the tests of a file."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from stub_federation import STUB, experiment, new_store

from curtail_pipeline.flower.local import Federation, LocalFederation
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.folder_store import FolderStore


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    new_store(folder)
    return folder


@pytest.fixture(scope="module")
def federation(home: Path) -> Iterator[LocalFederation]:
    """One federation for the tests that do not end it, started by two commands at once."""
    local = LocalFederation(home, experiment(), trainer=STUB)
    assert local.status().state == "down" and local.down() is False
    found: list[int] = []
    starters = [threading.Thread(target=lambda: found.append(local.up().pid)) for _ in range(2)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert len(found) == 2 and found[0] == found[1]
    yield local
    local.down()


@pytest.fixture
def handle(federation: LocalFederation) -> Federation:
    return Federation(federation.folder, 90, LivenessLimits(liveness_s=8))


@pytest.fixture
def store(home: Path) -> FolderStore:
    return FolderStore(home / "store")
