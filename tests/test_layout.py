"""The house: layers, circles, who may import Dagster and Flower, names, and sizes. Nothing is listed file by file."""

import ast
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("curtail_pipeline", "assets", "sensors")
ORCHESTRATED = ("assets", "sensors", "curtail_pipeline.definitions", "curtail_pipeline.orchestration")
"""The only places that import Dagster."""
LONGEST_FILE = 400
LONGEST_FUNCTION = 60
"""Lines of code: docstring, comments and blank lines are not counted."""
ANY_LINES = 80


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph(*PACKAGES, include_external_packages=True, cache_dir=None)


def test_no_circle_by_file(graph: grimp.ImportGraph) -> None:
    """Imports inside functions and for type checkers count too."""
    own = {module for module in graph.modules if module.split(".")[0] in PACKAGES}
    below = {module: graph.find_modules_directly_imported_by(module) & own for module in own}
    while leaves := {module for module, imported in below.items() if not imported}:
        below = {module: imported - leaves for module, imported in below.items() if module not in leaves}
    assert not below, f"a circle goes through {sorted(below)}"


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("dagster", ORCHESTRATED),
        ("flwr", ("curtail_pipeline.flower",)),
        ("torch", ("curtail_pipeline.training", "curtail_pipeline.benchmarks", "curtail_pipeline.stages.evaluate")),
    ],
)
def test_a_library_is_imported_where_it_belongs(
    graph: grimp.ImportGraph, library: str, allowed: tuple[str, ...]
) -> None:
    users = {
        user
        for name in graph.modules
        if name.split(".")[0] == library
        for user in graph.find_modules_that_directly_import(name)
    }
    strays = {user for user in users if not user.startswith(allowed)}
    assert users and not strays


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.name for path in files(*PACKAGES) if not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


def test_no_two_test_files_share_a_name() -> None:
    """pytest imports them by their names alone: of two one is not collected, and the whole run fails."""
    names = Counter(path.name for path in files("tests") if path.name != "conftest.py")
    assert [name for name, count in names.items() if count > 1] == []


def _code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    first = function.body[0]
    said = ast.get_docstring(function) is not None
    documented = range(first.lineno, (first.end_lineno or 0) + 1) if said else range(0)
    return sum(
        1
        for number in range(function.lineno, (function.end_lineno or 0) + 1)
        if number not in documented and lines[number - 1].strip() and not lines[number - 1].strip().startswith("#")
    )


def test_files_are_short() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in files(*PACKAGES, "tests")}
    assert [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > LONGEST_FILE] == []


def test_functions_are_short() -> None:
    long = []
    for path in files(*PACKAGES):
        lines = path.read_text().splitlines()
        for node in ast.walk(ast.parse("\n".join(lines))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = _code_lines(node, lines)
                if count > LONGEST_FUNCTION:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {count} lines of code")
    assert long == []


def test_every_package_says_what_is_decided_in_it() -> None:
    for folder in (ROOT / "curtail_pipeline").iterdir():
        if (folder / "__init__.py").exists():
            text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
            assert text and len(text) > 60, folder


def test_types_are_said() -> None:
    """`Any` is for what untyped libraries give; messages between processes have models."""
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in files("curtail_pipeline")
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if "Any" in "".join(c if c.isalnum() or c == "_" else " " for c in line).split()
    ]
    assert len(lines) <= ANY_LINES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("curtail_pipeline/extra.py", ""),
        ("curtail_pipeline/windows/extra.py", "import curtail_pipeline.scheduling.decide\n"),
        ("curtail_pipeline/extra/__init__.py", ""),
    ],
    ids=["at the root", "in a package", "in a new package"],
)
def test_a_file_that_breaks_the_order_breaks_the_contract(tmp_path: Path, path: str, content: str) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".importlinter", tmp_path)

    def contracts() -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"]
        return subprocess.run(command, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)

    assert contracts().returncode == 0
    (tmp_path / path).parent.mkdir(exist_ok=True)
    (tmp_path / path).write_text(content)
    broken = contracts()
    assert broken.returncode == 1 and "Imports go down the list BROKEN" in broken.stdout
