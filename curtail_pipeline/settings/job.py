"""What there is to train, and which policy decides when."""

from typing import Any

from pydantic import Field

from curtail_pipeline.settings.section import Section, UtcTime


class PolicySettings(Section):
    """Which policy decides, and its parameters."""

    name: str = "paper"
    parameters: dict[str, Any] = Field(default_factory=dict)


class JobSettings(Section):
    """What there is to train."""

    steps: int = Field(ge=1)
    """Optimiser steps over all sites together."""
    baseline_steps: int | None = Field(default=None, ge=1)
    """Steps of the always-on baselines, where they are not the same."""
    deadline: UtcTime | None = None
