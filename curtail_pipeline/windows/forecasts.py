"""Forecasts of a region's signal, as policies that look ahead ask for them."""

from typing import Protocol

from curtail_pipeline.windows.timeline import Floats, Micros


class Forecast(Protocol):
    """What is expected of a signal, as known at some time."""

    name: str

    def predict(self, region: str, now: int, targets: Micros) -> Floats:
        """Expected value per target time (microseconds), as known at `now`; NaN where the forecast says nothing."""
        ...
