"""The command line of a site that is a child of the code server, and what keeps one from being started."""

from pathlib import Path
from typing import Any

import pytest
from micro import EXPERIMENT, write_experiment

from curtail_pipeline.provisioning.provisioner import ProvisionError
from curtail_pipeline.scheduling.provision import WANTS_KEY, Want, Wants
from curtail_pipeline.settings.provisioner_settings import SubprocessProvisioner
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.site_keepers import _site_command, provision


@pytest.fixture(autouse=True)
def _no_superlink(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    for name in ("CURTAIL_SUPERLINK", "CURTAIL_CA", "CURTAIL_STORE"):
        monkeypatch.delenv(name, raising=False)


def opened(folder: Path, **provisioner: Any) -> Project:
    sites: list[dict[str, Any]] = [dict(site) for site in EXPERIMENT["sites"]]
    if provisioner:
        sites[0]["provisioner"] = provisioner
    return Project.open(write_experiment(folder / "input", sites=sites), "replay")


def test_a_child_is_the_command_that_a_person_would_use(tmp_path: Path) -> None:
    project = opened(tmp_path)
    words = _site_command(project, SubprocessProvisioner(kind="subprocess", superlink="a:1"), "NORTH")
    home = project.home
    assert words[2:] == [
        "curtail_pipeline.cli", "site", "run", "NORTH", "--superlink", "a:1", "--experiment",
        str(home.experiment_file), "--out", str(home.root),
    ]  # fmt: skip
    secured = SubprocessProvisioner(kind="subprocess", superlink="a:1", ca="ca.crt", key="north")
    assert " --ca ca.crt --key north " in " ".join(_site_command(project, secured, "NORTH"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "site NORTH: no SuperLink to join; give provisioner.superlink, host:port, or CURTAIL_SUPERLINK"),
        ({"superlink": "a:1", "ca": "ca.crt"}, "site NORTH: provisioner.ca and provisioner.key belong together"),
    ],
)
def test_what_a_child_lacks_is_one_line_of_the_sensor(tmp_path: Path, settings: dict[str, str], said: str) -> None:
    project = opened(tmp_path, kind="subprocess", **settings)
    assert provision(project) == "wanted up: no site", "nothing was decided yet"
    project.store.write_record(WANTS_KEY, Wants(sites={"NORTH": Want(up=True)}))
    with pytest.raises(ProvisionError, match=said):
        provision(project)


def test_without_provisioners_there_is_nothing_to_do(tmp_path: Path) -> None:
    assert provision(opened(tmp_path)) == "no site has a provisioner"
