"""What is written for another process to read: frozen models, refused when they are not what was agreed on.

A `Message` carries the version of its form (`schema`). One of another version, or with a key that is not known, is
refused rather than half understood.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import TypeAliasType

from curtail_pipeline.errors import MessageError

Json = TypeAliasType("Json", "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None")
"""A value as JSON has it, for what is passed on without being understood."""

Utc = Annotated[AwareDatetime, AfterValidator(lambda stamp: stamp.astimezone(UTC))]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

SCHEMA: Literal[1] = 1


class Record(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, serialize_by_alias=True)


class Message(Record):
    """A whole message."""

    schema_: Literal[1] = Field(default=SCHEMA, alias="schema")

    @classmethod
    def read(cls, content: bytes | str | Json, source: str) -> Self:
        """Validate a message; `source` names it in errors. Text and bytes are JSON.

        Raises:
            MessageError: not JSON, another version, an unknown or missing key, or a wrong type, each by its path.
        """
        parsed = _json(content, source) if isinstance(content, bytes | str) else content
        if isinstance(parsed, Mapping) and parsed.get("schema") != SCHEMA:
            raise MessageError(
                f"{source} has schema {parsed.get('schema')!r}, this version of curtail_pipeline understands {SCHEMA}; "
                "use the same version on both sides"
            )
        return read_record(cls, parsed, source)


R = TypeVar("R", bound=BaseModel)


def _json(text: bytes | str, source: str) -> Json:
    try:
        value: Json = json.loads(text)
    except ValueError as error:
        raise MessageError(f"{source} is not valid JSON ({error}); write it again") from error
    return value


def read_record(kind: type[R], content: Json, source: str) -> R:
    """`content` as a record of this kind.

    Raises:
        MessageError: an unknown or missing key, or a wrong type, each by its path.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        parts = [f"{'.'.join(map(str, e['loc'])) or 'all of it'}: {e['msg']}" for e in error.errors()[:4]]
        raise MessageError(
            f"{source} is not a {kind.__name__} that this version understands: {'; '.join(parts)}; "
            "write it again, with the same version of curtail_pipeline on both sides"
        ) from error
