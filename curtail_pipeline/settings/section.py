"""The base of every settings section, and types that several share."""

import re
import unicodedata
from collections.abc import Iterator
from datetime import UTC, datetime
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator

UtcTime = Annotated[
    datetime, AfterValidator(lambda stamp: stamp.replace(tzinfo=UTC) if stamp.tzinfo is None else stamp)
]
"""A time; one without an offset is in UTC."""

_INVISIBLE = re.compile("[\u200b-\u200d\u2060\ufeff\u00ad]")


def tidy(name: str) -> str:
    """A name of a file or of the settings as people read it: one form of each accented letter, plain single spaces
    inside, none around, and nothing invisible."""
    return " ".join(_INVISIBLE.sub("", unicodedata.normalize("NFC", name)).split())


Name = Annotated[str, AfterValidator(tidy)]
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
                types = set(_types(field.annotation))
                if types & {int, float} and bool not in types:
                    raise ValueError(f"{name} is {str(value).lower()}; give a number")
        return given


def _types(annotation: Any) -> Iterator[Any]:
    """Of a union those of its members."""
    yield annotation
    if get_origin(annotation) in (Union, UnionType, Annotated):
        for member in get_args(annotation):
            yield from _types(member)
