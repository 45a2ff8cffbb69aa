"""The options that say how a trace file is read: one set, one meaning, for every command that takes `--traces`.

They are keys of the `traces` section, set in place of the experiment's own.
"""

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Annotated

import typer

Reading = dict[str, object]
"""Keys of `FileFormat` that were given."""

_OPTIONS: dict[str, object] = {
    "unit": Annotated[str | None, typer.Option(help="g/kWh, kg/kWh, lb/MWh, currency/MWh or MW.")],
    "kind": Annotated[str | None, typer.Option(help="marginal_intensity, price or curtailed_power.")],
    "timezone": Annotated[
        str | None, typer.Option(help="Of stamps without an offset: an IANA name, or an offset such as +10:00.")
    ],
    "interval": Annotated[str | None, typer.Option(help="A stamp is the begin or the end of its interval.")],
    "time_column": Annotated[str | None, typer.Option(help="The first column, or `time`, by default.")],
    "time_format": Annotated[str | None, typer.Option(help="Of stamps that are not ISO 8601, e.g. %m/%d/%Y %H:%M.")],
    "columns": Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=REGION", help="Columns to read, and their regions; repeatable.")
    ],
    "where": Annotated[
        list[str] | None, typer.Option(metavar="COLUMN=VALUE", help="Rows to read, e.g. INTERVENTION=0; repeatable.")
    ],
    "cadence": Annotated[int | None, typer.Option(metavar="SECONDS", help="Between values; found by default.")],
    "combine": Annotated[str | None, typer.Option(help="Several rows of a stamp: sum, first or last.")],
    "missing": Annotated[str | None, typer.Option(help="Absent curtailed power: zero (a listing) or null.")],
    "set": Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of `traces`, e.g. separator=';'; repeatable."),
    ],
}


def _pairs(texts: Iterable[str], option: str, bare: bool) -> dict[str, str]:
    """`NAME=VALUE` texts; a name alone stands for itself where that has a meaning.

    Raises:
        typer.BadParameter: a text without a name or a value.
    """
    found: dict[str, str] = {}
    for text in texts:
        name, mark, value = text.rpartition("=") if bare else text.partition("=")
        # A value may be a space or a tab: a separator.
        name, value = (name.strip(), value.strip() or value) if mark else (text.strip(), text.strip())
        if not name or not value or not (mark or bare):
            raise typer.BadParameter(f"{option} {text!r}: write {option} NAME=VALUE")
        if name in found:
            raise typer.BadParameter(f"{option} names {name!r} twice; give it once")
        found[name] = value
    return found


def reading(given: dict[str, object]) -> Reading:
    """The options as keys of `traces`; those that were not given are left out.

    Raises:
        typer.BadParameter: as `_pairs`.
    """
    keys: Reading = {name: value for name, value in given.items() if value not in (None, [], ())}
    for name in ("columns", "where", "set"):
        if isinstance(texts := keys.get(name), list):
            keys[name] = _pairs(texts, f"--{name}", bare=name == "columns")
    if "cadence" in keys:
        keys["cadence_s"] = keys.pop("cadence")
    others = keys.pop("set", {})
    assert isinstance(others, dict)
    for key, text in others.items():
        if key in keys or key in ("path", "provider"):
            raise typer.BadParameter(f"--set {key}={text}: {key} is given by an option of its own")
        keys[key] = [part.strip() for part in text[1:-1].split(",")] if text[0] + text[-1] == "[]" else text
    return keys


def takes_file_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options; it receives those that were given as its parameter `file`."""
    own = inspect.signature(command)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]

    @functools.wraps(command)
    def with_options(**given: object) -> None:
        command(file=reading({name: given.pop(name) for name in _OPTIONS}), **given)

    kept = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in own.parameters.values()
        if parameter.name != "file"
    ]
    with_options.__signature__ = own.replace(parameters=[*kept, *options])  # type: ignore[attr-defined]
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in [*kept, *options]}
    return with_options
