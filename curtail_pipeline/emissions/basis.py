"""What a figure of energy or CO2 rests on, as the ledger's rows say it: the clock, the power and the grid's signal.

A projection is no measurement, whoever quotes it: its label stands wherever the figure stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import polars as pl

Clock = Literal["virtual", "wall"]

PROJECTED = "projected (virtual time, modelled power)"


@dataclass(frozen=True)
class Basis:
    """Of a figure: each is true where any of its energy is so."""

    virtual: bool
    modelled: bool
    synthetic: bool

    @property
    def label(self) -> str:
        """As it stands beside the figure."""
        if self.virtual:
            found = PROJECTED if self.modelled else "virtual time, measured power"
        else:
            found = "modelled power" if self.modelled else "measured power"
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
    drawn = ledger.filter((pl.col("kwh") > 0) | (pl.col("battery_kwh") > 0))
    if drawn.is_empty():
        return None
    return Basis(
        bool((drawn["clock"] == "virtual").any()),
        bool((drawn["power"] == "modelled").any()),
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
