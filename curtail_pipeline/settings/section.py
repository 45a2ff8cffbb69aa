"""The base of every settings section."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A settings section: immutable; an unknown key is an error rather than ignored, and so is an infinite number."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
