"""The Dockerfile, as far as it can be checked without Docker: one base, packages that are pinned and go together."""

import re
import tomllib

import pytest
from image_layout import closure, normal, read_dockerfile, required
from micro import ROOT
from packaging.requirements import Requirement
from packaging.version import Version

DOCKERFILE = ROOT / "Dockerfile"


def pins() -> dict[str, Version]:
    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {normal(name): Version(version) for name, _, version in (line.partition("==") for line in lines if line)}


def test_every_stage_is_of_one_release_of_python_that_the_project_takes() -> None:
    stages = read_dockerfile(DOCKERFILE)
    bases = {stage.base for stage in stages.values()} - stages.keys()
    assert len(bases) == 1
    found = re.fullmatch(r"python:(3\.\d+(?:\.\d+)?)-slim-[a-z]+", bases.pop())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert found is not None and Version(found[1]) in Requirement(f"python{project['requires-python']}").specifier
    assert f"Python {found[1]}," in (ROOT / "constraints.txt").read_text().splitlines()[0]


def test_nothing_is_installed_that_is_not_pinned() -> None:
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    commands = re.findall(r"pip install [^&\n]*", text)
    assert commands and all("--constraint constraints.txt" in each or "--no-deps" in each for each in commands)


def test_a_site_can_compile_its_model() -> None:
    _, _, stage = DOCKERFILE.read_text().partition(" AS site\n")
    install, _, after = stage.partition("USER curtail")
    assert after and "--no-install-recommends g++" in install, "torch.compile makes kernels with a compiler"


@pytest.mark.parametrize("target", ["control", "site"])
def test_what_a_target_installs_is_pinned_and_goes_together(target: str) -> None:
    stages, pinned = read_dockerfile(DOCKERFILE), pins()
    wanted = required(stages[stages[target].venv_of].dependencies)
    packages = closure(wanted)
    names = {normal(each.metadata["Name"]) for each in packages}
    assert names - pinned.keys() == set(), "is not in constraints.txt"
    for each in packages:
        version = Version(each.version)
        assert Version(version.public) == pinned[normal(each.metadata["Name"])], "this environment is another one"
        wanted += each.requires or []
    for text in wanted:
        needed = Requirement(text)
        name = normal(needed.name)
        if name in names and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
            assert needed.specifier.contains(pinned[name], prereleases=True), text
