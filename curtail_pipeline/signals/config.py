"""Settings of the trace providers (the `traces` section of an experiment)."""

from datetime import datetime
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from curtail_pipeline.base import Section

Kind = Literal["marginal_intensity", "average_intensity", "price", "curtailed_power"]
"""What a signal measures. `average_intensity` is for accounting only; it never defines a window."""

Unit = Literal["g/kWh", "kg/kWh", "lb/MWh", "currency/MWh", "MW"]


class ProviderSettings(Section):
    """Base of a provider's settings. `implementation` ("module:Class") is the provider's registration."""

    implementation: ClassVar[str]


class SyntheticTraces(ProviderSettings):
    """The seeded merit-order model; every row it makes says `source = synthetic`."""

    implementation: ClassVar[str] = "curtail_pipeline.signals.synthetic:SyntheticProvider"
    provider: Literal["synthetic"] = "synthetic"
    seed: int = 0
    start: datetime
    days: int = Field(default=2, ge=1)
    cadence_s: int = Field(default=300, ge=60)


class FileTraces(ProviderSettings):
    """A CSV (also .gz) or Parquet file, wide (`time, REGION, ...`) or long (`time, region, value`)."""

    implementation: ClassVar[str] = "curtail_pipeline.signals.files:FileProvider"
    provider: Literal["file"] = "file"
    path: str
    layout: Literal["auto", "wide", "long"] = "auto"
    time_column: str | None = None
    columns: dict[str, str] = Field(default_factory=dict, description="column in the file -> region")
    unit: Unit = "g/kWh"
    kind: Kind = "marginal_intensity"
    timezone: str = "UTC"
    interval: Literal["begin", "end"] = "begin"


TracesSettings = Annotated[SyntheticTraces | FileTraces, Field(discriminator="provider")]
"""Settings of the provider of an experiment's traces."""
