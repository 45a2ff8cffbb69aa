"""The base of every settings section, and types that several share."""

import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from types import UnionType
from typing import Annotated, Any, Final, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, model_validator

AS_WRITTEN: Final = "a time is written like 2026-01-11T17:00:00Z, and a day like 2026-01-11"


def _no_number(given: object) -> object:
    """A number would be seconds since 1970, and 20240603 a day of that year."""
    if isinstance(given, int | float) or (isinstance(given, str) and re.fullmatch(r"[+-]?[\d.]+", given.strip())):
        raise ValueError(AS_WRITTEN)
    return given


UtcTime = Annotated[
    datetime,
    BeforeValidator(_no_number),
    AfterValidator(lambda stamp: stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp),
]
"""A time; one without an offset is in UTC."""

_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad]")


def tidy(name: str) -> str:
    """A name of a file or of the settings as people read it: one form of each accented letter, plain single spaces
    inside, none around, and nothing invisible."""
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", name)).split())


def _named(given: str) -> str:
    name = tidy(given)
    if given and not name:
        raise ValueError("is blank; give a name that can be read")
    return name


Name = Annotated[str, AfterValidator(_named)]
"""A name that also stands in files; both are compared as `tidy` makes them."""


class Section(BaseModel):
    """A settings section: immutable; an unknown key is an error rather than ignored, and so are an infinite number and
    true or false where a number is meant."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, given: Any) -> Any:
        for name, value in given.items() if isinstance(given, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None:
                types = set(types_of(field.annotation))
                if types & {int, float} and bool not in types:
                    raise ValueError(f"{name} is {str(value).lower()}; give a number")
        return given


def types_of(annotation: Any) -> Iterator[Any]:
    """Of a union those of its members."""
    yield annotation
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for member in get_args(annotation):
            yield from types_of(member)
