"""A checkpoint to the hub: a server on loopback that speaks as much of the hub's HTTP as an upload needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_hub import TOKEN, Hub, fake_hub
from test_account import project_with_a_hole

from curtail_pipeline.errors import SettingsError, StoreError
from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.stages.export import export_checkpoint, in_home
from curtail_pipeline.stages.project import Project

KEY = "ckpt-000001"
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub of its HTTP client


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return project_with_a_hole(tmp_path_factory.mktemp("export"), 3_600)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    with fake_hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.address)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def test_a_checkpoint_is_uploaded_with_its_card_to_a_private_repository(project: Project, hub: Hub) -> None:
    where = export_checkpoint(project, KEY, "hf://me/curtailed")
    assert where == f"{hub.address}/me/curtailed/commit/1"
    assert hub.repositories["me/curtailed"]["visibility"] == "private"
    assert hub.files["model.safetensors"] == b"weights"
    assert KEY in hub.files["README.md"].decode()


def refused(project: Project, destination: str = "hf://me/curtailed") -> str:
    with pytest.raises(StoreError) as caught:
        export_checkpoint(project, KEY, destination)
    said = str(caught.value)
    assert "\n" not in said and said.startswith(f"{KEY} was not uploaded to me/curtailed: ")
    return said


def test_without_a_token_nothing_is_asked(project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert refused(project).endswith("there is no token; set HF_TOKEN, or run `hf auth login`")
    assert hub.asked == []


def test_a_token_that_the_hub_does_not_know(project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    said = refused(project)
    assert "Invalid username or password; the hub does not know the token: set another HF_TOKEN" in said
    assert "hf_another" not in said


def test_a_repository_of_somebody_else(project: Project, hub: Hub) -> None:
    hub.refuse = True
    said = refused(project)
    assert "rights to write to this namespace; give a repository of your own" in said
    assert hub.files == {}


def test_a_file_that_is_not_taken(project: Project, hub: Hub) -> None:
    hub.full = True
    assert "413" in refused(project)
    assert hub.files == {}


def test_a_hub_that_cannot_be_reached(project: Project, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("HF_ENDPOINT", gone)
    said = refused(project)
    assert f"{gone} cannot be reached (" in said and said.endswith("check the network, and HF_ENDPOINT if it is set")


@pytest.mark.parametrize("destination", ["", "  ", "hf://", "hf://me", "hf://me/a/b"])
def test_a_destination_that_is_none(project: Project, destination: str) -> None:
    with pytest.raises(SettingsError, match="hf://owner/name"):
        export_checkpoint(project, KEY, destination)


@pytest.mark.parametrize("destination", ["exports/one", "one", "", "hf://me/curtailed", "a/../store.old"])
def test_where_the_web_ui_may_export_to(project: Project, destination: str) -> None:
    assert in_home(project, destination) == destination


@pytest.mark.parametrize(
    "destination",
    [
        "/etc/model",
        "../model",
        "exports/../../model",
        "store/checkpoints/ckpt-000002",
        "ui",
        ".",
        "store.uri",
        ".run.lock",
    ],
)
def test_where_it_may_not(project: Project, destination: str) -> None:
    with pytest.raises(SettingsError, match="curtail checkpoints export"):
        in_home(project, destination)


def test_a_link_out_of_the_home_is_no_way_out(project: Project, tmp_path: Path) -> None:
    (project.home.root / "out").symlink_to(tmp_path)
    with pytest.raises(SettingsError, match="'out/model' is no folder"):
        in_home(project, "out/model")
