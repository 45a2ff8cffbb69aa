"""What a figure of energy or CO2 rests on, as the ledger's rows say it: the clock, the power and the grid's signal.

A projection is no measurement, whoever quotes it: its label stands wherever the figure stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import polars as pl

from curtail_pipeline.emissions.formats import percent

Clock = Literal["virtual", "wall"]


@dataclass(frozen=True)
class Basis:
    """Of a figure: virtual and synthetic are true where any of its energy is so."""

    virtual: bool
    measured_share: float
    """Of its energy."""
    synthetic: bool

    @property
    def label(self) -> str:
        """As it stands beside the figure."""
        if self.measured_share == 1:
            power = "measured power"
        elif self.measured_share == 0:
            power = "modelled power"
        else:
            power = f"{percent(self.measured_share)} measured, else modelled power"
        found = f"projected (virtual time, {power})" if self.virtual else power
        return f"{found}, synthetic signal" if self.synthetic else found


def clock_of(rounds: Sequence[tuple[datetime, datetime]], booked: tuple[datetime, datetime], *, planned: bool) -> Clock:
    """Whose time a segment's energy is booked in, told by its own files.

    Args:
        rounds: start and end of each.
        booked: start and end of the segment in its manifest.
        planned: its steps were known beforehand, as in a headless run.
    """
    inside = all(booked[0] <= start and end <= booked[1] for start, end in rounds)
    return "wall" if rounds and inside and not planned else "virtual"


def basis_of(ledger: pl.DataFrame, *, synthetic: bool = False) -> Basis | None:
    """What the sum of a ledger rests on; None where it has no energy.

    Args:
        synthetic: a value of the traces is known to be made up.
    """
    used = pl.col("kwh") + pl.col("battery_kwh").fill_null(0.0)
    drawn = ledger.filter(used > 0)
    if drawn.is_empty():
        return None
    of_meters, kwh = drawn.select(used.filter(pl.col("power") == "measured").sum(), used.sum().alias("all")).row(0)
    return Basis(
        bool((drawn["clock"] == "virtual").any()),
        of_meters / kwh,
        synthetic or bool((drawn["signal"] == "synthetic").any()),
    )


def label_of(ledger: pl.DataFrame | None, *, synthetic: bool = False) -> str | None:
    """`Basis.label`; None where there is no energy to speak of."""
    found = None if ledger is None else basis_of(ledger, synthetic=synthetic)
    return found.label if found else None


def is_synthetic(traces: pl.DataFrame) -> bool:
    """Whether any value is made up."""
    return bool(synthetic_regions(traces))


def synthetic_regions(traces: pl.DataFrame) -> set[str]:
    """Regions of which any value is made up, whatever source it came through."""
    if "source" not in traces.columns:
        return set()
    return set(traces.filter(pl.col("source") == "synthetic")["region"])
