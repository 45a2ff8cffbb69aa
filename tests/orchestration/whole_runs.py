"""A whole run of the micro experiment that nothing disturbed, which tests copy, and what they ask of a home."""

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from commands import run_python
from micro import curtail, environment, write_experiment

from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import Manifest

CURTAILED = {"NORTH": [(10, 75)], "SOUTH": [(50, 90)], "EAST": [(110, 125)]}
"""Minutes from START: NORTH alone, NORTH and SOUTH, SOUTH alone, a pause, EAST; a site goes on for ten more."""
END = "2026-05-01T02:20:00Z"


def write(folder: Path, **changes: Any) -> Path:
    """The experiment of that run; a machine that is shared takes its time to start a federation."""
    return write_experiment(
        folder, CURTAILED, **{"clock": {"end": END}, "federation": {"start_timeout_s": 600}, **changes}
    )


def processes_of(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(home) in line or (process.info["environ"] or {}).get("CURTAIL_HOME") == str(home):
            found.append(process)
    return found


def manifests(home: Path) -> dict[str, Manifest]:
    checkpoints = Checkpoints(FolderStore(home / "micro" / "store"))
    return {key: checkpoints.manifest(key) for key in checkpoints.keys()}


@dataclass(frozen=True)
class Finished:
    """A run, or a copy of one."""

    home: Path
    experiment: Path
    """The file."""

    @cached_property
    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "summary.json").read_text())
        return found

    def key_of(self, mode: str) -> str:
        return str(next(row["key"] for row in self.summary["checkpoints"] if row["mode"] == mode))

    def copy(self, home: Path, replay: str = "spare") -> "Finished":
        """In another home, where replays run `spare` or in a process of their `own`."""
        shutil.copytree(self.home / "micro", home / "micro")
        shutil.copy(self.home / "summary.json", home)
        file = home / "micro" / "experiment.yaml"
        text = file.read_text()
        assert "replay: spare" in text
        file.write_text(text.replace("replay: spare", f"replay: {replay}"))
        return Finished(home, self.experiment)


def finish(home: Path) -> Finished:
    """Run it."""
    found = Finished(home, write(home / "input"))
    done = curtail("run", "--experiment", str(found.experiment), "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert not processes_of(home), "the federation outlived the run"
    (home / "summary.json").write_text(done.stdout.splitlines()[-1])
    return found


def materialise(home: Path, *wanted: str, **more: str) -> list[dict[str, Any]]:
    """What materialising came to, through Dagster as the UI's button does it (`tests/materialise.py`)."""
    words = [str(Path(__file__).parents[1] / "materialise.py"), str(home / "micro"), *wanted]
    done = run_python(*words, env=environment(home) | more, timeout=900, torch=True)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found
