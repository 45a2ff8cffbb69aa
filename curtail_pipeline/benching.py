"""`curtail bench NAME`: runs a module of `benchmarks/`, which returns what it measured."""

import importlib.util
import json
from pathlib import Path
from typing import Any

from curtail_pipeline.errors import SettingsError

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
MODULES = {"tokenize": "tokenize_corpus"}
"""Benchmarks whose module has another name: `tokenize.py` would shadow the standard library's."""


def names() -> list[str]:
    """The benchmarks there are."""
    shown = {module: name for name, module in MODULES.items()}
    return sorted(shown.get(path.stem, path.stem.replace("_", "-")) for path in BENCHMARKS.glob("[!_]*.py"))


def run_benchmark(name: str, options: list[str]) -> dict[str, Any]:
    """Run a benchmark with `key=value` options; values are JSON where they can be.

    Raises:
        SettingsError: no such benchmark, or an option it does not take.
    """
    path = BENCHMARKS / f"{MODULES.get(name, name.replace('-', '_'))}.py"
    if not path.exists():
        raise SettingsError(f"no benchmark {name!r}; there are {', '.join(names())}")
    spec = importlib.util.spec_from_file_location(f"benchmarks.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        result: dict[str, Any] = module.run(**dict(_option(text) for text in options))
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise SettingsError(f"benchmark {name!r}: {error}; see {path.name} for its options") from error
    return result


def _option(text: str) -> tuple[str, Any]:
    key, sep, value = text.partition("=")
    if not sep:
        raise SettingsError(f"option {text!r} is not key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
