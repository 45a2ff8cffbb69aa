"""Settings of the model card (the `card` section of an experiment)."""

from pydantic import Field

from curtail_pipeline.settings.section import Section


class CardSettings(Section):
    """What only the publisher knows of a model; what is not given is left out of its card."""

    license: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """Of the weights, as the Hugging Face hub writes it: `apache-2.0`, `mit`, `cc-by-4.0`, `other`."""
    language: list[str] = Field(default_factory=list)
    """Of the text, ISO 639-1; English is known of the embedded text."""
    datasets: list[str] = Field(default_factory=list)
    """Names on the hub, `owner/name`; that of a source `hf://datasets/...` is known."""
