"""What the image is built from is there, and what its roles name is in it."""

import re
from pathlib import Path

import yaml
from micro import ROOT

APP = Path("/app")


def copied() -> set[str]:
    """Top-level files and folders of the checkout that the image gets."""
    lines = re.findall(r"^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text(), flags=re.M)
    return {name for line in lines for name in line.split()}


def test_the_image_is_built_from_what_there_is() -> None:
    let_through = {
        line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line.startswith("!")
    }
    assert {"curtail_pipeline", "assets", "sensors", "deploy"} <= copied()
    assert copied() == let_through
    for name in copied():
        assert (ROOT / name).exists() and not (ROOT / name).is_symlink(), name


def test_what_the_roles_name_is_in_the_image() -> None:
    services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    named = {word for service in services.values() for word in service.get("command", []) if word.startswith("deploy/")}
    homes = {service["environment"].get("DAGSTER_HOME") for service in services.values()} - {None}
    named |= {str(Path(home).relative_to(APP)) for home in homes}
    assert named == {"deploy/workspace.yaml", "deploy/dagster"}
    for name in named:
        assert (ROOT / name).exists() and Path(name).parts[0] in copied(), name


def test_with_a_bucket_only_the_places_of_files_differ() -> None:
    folder = ROOT / "deploy" / "dagster"
    here, bucket = (
        yaml.safe_load(path.read_text()) for path in (folder / "dagster.yaml", folder / "bucket/dagster.yaml")
    )
    places = {"local_artifact_storage", "compute_logs"}
    assert {k: v for k, v in here.items() if k not in places} == {k: v for k, v in bucket.items() if k not in places}


def test_what_dagster_writes_goes_to_the_volume() -> None:
    content = yaml.safe_load((ROOT / "deploy" / "dagster" / "dagster.yaml").read_text())
    for part in ("local_artifact_storage", "compute_logs"):
        assert Path(content[part]["config"]["base_dir"]).is_relative_to("/data")
