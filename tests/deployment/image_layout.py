"""The files of an image as its Dockerfile lays them out, without Docker: what COPY names, and what pip would install.

Packages are links to those installed here, of the dependencies that the Dockerfile's target installs and of nothing
else: an import that these do not bring fails as it would in the image.
"""

import compileall
import re
import shutil
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

PACKAGES = "/packages"
"""Where this environment's site-packages are mounted in a container."""
OWN = "curtail_pipeline"


@dataclass
class Stage:
    """What a stage of the Dockerfile says."""

    base: str
    copies: list[str] = field(default_factory=list)
    """Names in the checkout that are copied into the working directory."""
    dependencies: list[str] = field(default_factory=list)
    """Lists of pyproject.toml that are installed: `dependencies`, or the name of an extra."""
    environment: dict[str, str] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    """Made, and given to the user."""
    user: str = ""
    workdir: str = ""
    uid: int = 0
    venv_of: str = ""
    """The stage that its packages are copied from."""


def read_dockerfile(path: Path) -> dict[str, Stage]:
    """Its stages, each with what its base says already."""
    stages: dict[str, Stage] = {}
    stage = Stage("")
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", path.read_text(), flags=re.M)).splitlines()
    for line in filter(None, map(str.strip, lines)):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            before = stages.get(base, Stage(""))
            stage = stages[name] = Stage(
                base, [*before.copies], [*before.dependencies], {**before.environment}, [*before.folders],
                before.user, before.workdir, before.uid, before.venv_of,
            )  # fmt: skip
        elif word == "COPY" and (copied := re.match(r"--from=(\S+) /opt/venv /opt/venv", rest)):
            stage.venv_of = copied[1]
        elif word == "COPY":
            *names, target = rest.split()
            assert target in ("./", *names), line
            stage.copies += names
        elif word == "ENV":
            stage.environment |= dict(pair.split("=", 1) for pair in rest.split())
        elif word == "USER":
            stage.user = rest
        elif word == "WORKDIR":
            stage.workdir = rest
        elif word == "RUN":
            stage.dependencies += re.findall(r"\['project'\](?:\['optional-dependencies'\])?\['([\w-]+)'\]", rest)
            for made, owned in re.findall(r"mkdir -p ([/\w ]+) && chown curtail:curtail ([/\w ]+)", rest):
                assert made == owned.strip() or made.strip() == owned.strip(), line
                stage.folders += made.split()
            if found := re.search(r"useradd .*--uid (\d+) ", rest):
                stage.uid = int(found[1])
    return stages


def lay_out(root: Path, checkout: Path, stage: Stage, stages: dict[str, Stage]) -> None:
    """Write the stage's files below `root`: its working directory and `/opt/venv`."""
    app = root / stage.workdir.lstrip("/")
    app.mkdir(parents=True)
    for name in dict.fromkeys(stage.copies):
        source, target = checkout / name, app / name
        if source.is_dir():
            shutil.copytree(source, target)
            compileall.compile_dir(target, quiet=1)  # as the image does: its user may not write there
        else:
            shutil.copy2(source, target)
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    _venv(root / "opt/venv", stage.workdir, required(stages[stage.venv_of].dependencies), project)


def _venv(folder: Path, app: str, requirements: Iterable[str], project: dict[str, Any]) -> None:
    base = Path(sys.base_prefix)
    library = folder / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    programs = folder / "bin"
    library.mkdir(parents=True)
    programs.mkdir()
    (folder / "pyvenv.cfg").write_text(f"home = {base}/bin\ninclude-system-site-packages = false\n")
    for name in ("python", "python3"):
        (programs / name).symlink_to(f"{base}/bin/python{sys.version_info.major}.{sys.version_info.minor}")
    (library / "app.pth").write_text(f"{app}\n")
    own = library / f"{OWN}-{project['version']}.dist-info"
    own.mkdir()
    (own / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {OWN}\nVersion: {project['version']}\n")
    commands: dict[str, str] = dict(project["scripts"])
    for found in closure(requirements):
        for top in sorted({file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}):
            if not (library / top).is_symlink():
                (library / top).symlink_to(f"{PACKAGES}/{top}")
        commands |= {point.name: point.value for point in found.entry_points if point.group == "console_scripts"}
    for name, value in commands.items():
        module, _, function = value.partition(" ")[0].partition(":")
        call = f"from {module} import {function.partition('.')[0]}\n"
        call += f"if __name__ == '__main__':\n    raise SystemExit({function}())\n"
        script = programs / name
        script.write_text(f"#!/opt/venv/bin/python\n{call}")
        script.chmod(0o755)


def required(lists: Iterable[str]) -> list[str]:
    """The requirements in lists of pyproject.toml, named as in `Stage.dependencies`."""
    project = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
    found: list[str] = []
    for name in lists:
        found += project["dependencies"] if name == "dependencies" else project["optional-dependencies"][name]
    return found


def installed(extras: Iterable[str]) -> set[str]:
    """Names of the packages that the dependencies of the checkout bring, with those of these extras."""
    return {normal(found.metadata["Name"]) for found in closure(required(["dependencies", *extras]))}


def normal(name: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(requirements: Iterable[str]) -> list[metadata.Distribution]:
    """The installed packages that these bring, themselves included."""
    found: dict[tuple[str, frozenset[str]], metadata.Distribution] = {}
    todo = [Requirement(text) for text in requirements]
    while todo:
        wanted = todo.pop()
        key = (normal(wanted.name), frozenset(wanted.extras))
        if key in found:
            continue
        distribution = found[key] = metadata.distribution(wanted.name)
        for text in distribution.requires or []:
            needed = Requirement(text)
            extras = ["", *wanted.extras]
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return list({id(each): each for each in found.values()}.values())
