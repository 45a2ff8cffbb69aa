"""What is wrong with settings, in one line that names each key, its value and the fix."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from types import GenericAlias
from typing import Final, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from curtail_pipeline.settings.section import AS_WRITTEN, Section, types_of

_MEMBER: Final = re.compile(r"str|int|float|constrained-\w+|(?:literal|list|dict|function-\w+)\[.*\]")
"""What pydantic adds to the path of a value that may be of several types."""
_DECIMAL_COMMA: Final = re.compile(r"[+-]?\d+,\d+")
_SECTION: Final = ("model_type", "model_attributes_type", "dict_type", "model_class_type")


def explain(error: ValidationError, source: str, model: type[Section]) -> str:
    """What is wrong with settings.

    Args:
        source: names them.
        model: what they were read as.
    """
    return f"{source}: " + "; ".join(_said(item, model) for item in error.errors())


def _said(item: ErrorDetails, model: type[Section]) -> str:
    path, sections = _place(item["loc"], model)
    where = ".".join(path) or ("traces" if "path" in model.model_fields else "experiment")
    given, kind = item["input"], item["type"]
    if kind == "extra_forbidden":
        return f"unknown key {where!r}: {_meant(path, sections, model)}"
    if kind == "missing":
        return f"missing key {where!r}: add it"
    if kind in ("union_tag_not_found", "union_tag_invalid"):
        return _unknown_choice(where, item["ctx"])
    if kind == "invalid_key":
        return f"{where}: a key is a name; if its comma is a decimal one, write a point, as in 2.5"
    if given is None and kind in (*_SECTION, "list_type"):
        return f"{where}: is empty; give what belongs in it, or leave it out"
    if kind in _SECTION:
        return f"{where}: is a section of keys, each with a value, and not {given!r}"
    if kind == "list_type":
        if isinstance(given, dict):
            return f"{where}: is a list, each entry after '- ', and not a section of keys"
        return f"{where}: is a list; write [{given}]"
    if kind == "string_type" and isinstance(given, bool | int | float):
        return f"{where}: is a text, which YAML reads as {given!r}; write it in quotes"
    shown = "" if isinstance(given, dict) else f" (got {given!r})"
    if kind.startswith("datetime_"):
        return f"{where}: {AS_WRITTEN}{shown}"
    if isinstance(given, str) and _DECIMAL_COMMA.fullmatch(given):
        shown = f" (got {given!r}; write {given.replace(',', '.')})"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}{shown}"


def _unknown_choice(where: str, context: Mapping[str, object]) -> str:
    """Of sections that one of their keys tells apart: it is missing, or has another value."""
    key = f"{where}.{str(context['discriminator']).strip(chr(39))}"
    tag = context.get("tag")
    if tag is None:
        return f"missing key {key!r}: add it"
    known = [name.strip(" '") for name in str(context["expected_tags"]).split(",")]
    near = difflib.get_close_matches(str(tag), known, 1, 0.6)
    meant = f": did you mean {near[0]!r}?" if near else ""
    return f"{key}: {tag!r} is not one of {', '.join(known)}{meant}"


def _place(loc: Sequence[int | str], model: type[Section]) -> tuple[list[str], list[type[Section]]]:
    """The path of a value as people write it, and the sections that its last key may be of."""
    path: list[str] = []
    inside, current = [model], [model]
    for part in map(str, loc):
        owners = [section for section in current if part in _keys(section)]
        if owners:
            inside = current
            current = [found for section in owners for found in _sections(section, part)]
            path.append(part)
        elif tagged := [section for section in current if part in _tags(section)]:
            current = tagged  # which of several sections pydantic took this for
        elif not _MEMBER.fullmatch(part):
            inside = current
            path.append(part)
    return path, inside


def _keys(section: type[Section]) -> set[str]:
    return {*section.model_fields, *(str(f.alias) for f in section.model_fields.values() if f.alias)}


def _tags(section: type[Section]) -> set[str]:
    """What of a section's fields can have one value only says which section it is."""
    return {str(field.default) for name, field in section.model_fields.items() if name in ("provider", "kind")}


def _sections(section: type[Section], name: str) -> list[type[Section]]:
    field = section.model_fields.get(name)
    return [] if field is None else list(_within(field.annotation))


def _within(annotation: object) -> Iterator[type[Section]]:
    """The sections that a type is of, or holds."""
    for found in types_of(annotation):
        if isinstance(found, type) and not isinstance(found, GenericAlias) and issubclass(found, Section):
            yield found
        elif get_origin(found) in (list, dict):
            yield from (section for argument in get_args(found) for section in _within(argument))


def _meant(path: Sequence[str], sections: Sequence[type[Section]], model: type[Section]) -> str:
    """What to do about an unknown key: a spelling of this section, or the section that has it."""
    name, beside = path[-1], sorted({key for section in sections for key in section.model_fields})
    near = difflib.get_close_matches(name, beside, 1, 0.7)
    if near:
        return f"did you mean {near[0]!r}?"
    if path[:-1] == ["policy"]:
        return "a policy's own keys stand under policy.parameters"
    homes = [home for home in _homes(model) if home.rpartition(".")[2] == name]
    if len(homes) == 1:
        return f"it belongs in {homes[0]!r}"
    return f"remove it or correct its spelling (there are {', '.join(beside)})"


def _homes(section: type[Section], before: str = "") -> Iterator[str]:
    """The paths of all keys; those of lists as of their entries."""
    for name, field in section.model_fields.items():
        yield before + name
        for inner in dict.fromkeys(_within(field.annotation)):
            if inner is not section:
                yield from _homes(inner, f"{before}{name}.")
