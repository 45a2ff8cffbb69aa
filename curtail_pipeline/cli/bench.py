"""`curtail bench NAME --option value`: runs `benchmarks/bench_NAME.py`, whose `run` returns what it measured."""

import importlib
import inspect
import json
import pkgutil
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

from curtail_pipeline import benchmarks
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.storage.records import Json

PREFIX = "bench_"


def names() -> list[str]:
    """The benchmarks there are."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name.removeprefix(PREFIX).replace("_", "-") for name in found if name.startswith(PREFIX))


def run_benchmark(name: str, words: Sequence[str]) -> Mapping[str, Json]:
    """Run a benchmark; what it takes are the parameters of its `run`.

    Args:
        words: `--option value` or `--option=value`, or `--option` alone for true; a value is JSON where it can be.

    Raises:
        SettingsError: no such benchmark, or an option or a value it does not take.
    """
    if name not in names():
        raise SettingsError(f"no benchmark {name!r}; there are {', '.join(names())}")
    module = importlib.import_module(f"{benchmarks.__name__}.{PREFIX}{name.replace('-', '_')}")
    known = inspect.signature(module.run, eval_str=True).parameters
    given: dict[str, Json] = {}
    for option, text in parse_options(words).items():
        if option not in known:
            shown = ", ".join(f"--{key.replace('_', '-')}" for key in known) or "no option"
            raise SettingsError(f"benchmark {name!r} takes {shown}, not --{option.replace('_', '-')}")
        given[option] = value_of(option, text, known[option].annotation)
    result: Mapping[str, Json] = module.run(**given)
    return result


def parse_options(words: Sequence[str]) -> dict[str, str | None]:
    """Texts of options by parameter name; None for one that stands alone.

    Raises:
        SettingsError: a word that is no option and no option's value, or an option given twice.
    """
    options: dict[str, str | None] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or word == "--":
            hint = f"; write --{word.replace('=', ' ', 1)}" if "=" in word else ""
            raise SettingsError(f"{word!r} is no option of a benchmark{hint or '; write --option value'}")
        key, sep, text = word[2:].partition("=")
        if not sep and rest and not rest[0].startswith("--"):
            text, sep = rest.pop(0), "="
        key = key.replace("-", "_")
        if key in options:
            raise SettingsError(f"--{key.replace('_', '-')} is given twice; give it once")
        options[key] = text if sep else None
    return options


def value_of(option: str, text: str | None, kind: Any) -> Json:
    """What an option says to a parameter of this type: its JSON where the parameter takes that, else its text.

    Raises:
        SettingsError: the parameter takes neither.
    """
    takes = TypeAdapter(kind)
    try:
        value: Json = takes.validate_python(True if text is None else _value(text), strict=True)
    except ValidationError:
        try:
            value = takes.validate_python(text, strict=True)
        except ValidationError as error:
            shown = f"--{option.replace('_', '-')}"
            said = f"{shown} without a value" if text is None else f"{shown} {text}"
            raise SettingsError(f"{said} will not do: {error.errors()[0]['msg']}") from None
    return value


def _value(text: str) -> Json:
    try:
        value: Json = json.loads(text)
    except ValueError:
        return text
    return value
