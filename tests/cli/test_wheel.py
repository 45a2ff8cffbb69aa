"""An installed wheel does what a checkout does: built, installed into an empty folder and run from another one."""

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from micro import CURTAILED, EXPERIMENT, ROOT, environment, write_experiment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SOURCES = ("pyproject.toml", "README.md", "curtail_pipeline", "assets", "sensors")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that nothing is left in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source, target = ROOT / name, folder / "source" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    folder = wheel.parent / "installed"
    _pip("install", "--no-deps", "--target", str(folder), str(wheel))
    return folder


def _pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


def curtail(installed: Path, folder: Path, *words: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run the wheel's command in `folder`, which is no checkout and has none on its path."""
    done = subprocess.run(
        [sys.executable, "-m", "curtail_pipeline.cli", *words],
        cwd=folder,
        env=environment(folder / "homes") | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("curtail_pipeline", "assets", "sensors")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - held == set()


def test_modules_come_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import curtail_pipeline as c, assets as a, sensors as s; print(c.__file__, a.__file__, s.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(tmp_path) | {"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(Path(file).is_relative_to(installed) for file in found.stdout.split())


def test_a_benchmark_runs(installed: Path, tmp_path: Path, test_data: Path) -> None:
    done = curtail(installed, tmp_path, "bench", "windows-quality", "--data", str(test_data))
    assert json.loads(done.stdout.splitlines()[-1])["rules"]["marginal_intensity < 100 g/kWh"]["precision"] == 1.0


@pytest.mark.long
def test_windows_and_a_run(installed: Path, tmp_path: Path) -> None:
    """Of one site: its processes come from the wheel, and another's would as well."""
    sites = EXPERIMENT["sites"][:1]
    experiment = write_experiment(tmp_path / "input", {"NORTH": CURTAILED["NORTH"]}, sites=sites, job={"steps": 3})
    trace = str(tmp_path / "input" / "trace.csv")
    done = curtail(installed, tmp_path, "windows", "--traces", trace, "--policy", "threshold", "--json")
    assert json.loads(done.stdout.splitlines()[-1])["hours"]["NORTH"] == 1.5
    done = curtail(installed, tmp_path, "run", "--experiment", str(experiment), "--json", timeout=900)
    summary = json.loads(done.stdout.splitlines()[-1])
    assert summary["steps"] == 3 and Path(summary["report"]).is_relative_to(tmp_path / "homes")
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"homes", "input"}
