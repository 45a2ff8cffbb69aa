"""What a new version of a stored trace changes."""

from dataclasses import dataclass
from datetime import datetime

import polars as pl

from curtail_pipeline.times import iso


@dataclass(frozen=True)
class Revisions:
    """Differences between two versions of a trace, by region, kind and stamp."""

    revised: int = 0
    """Stamps with a value in both, and a different one."""
    filled: int = 0
    """Stamps that had no value and have one now."""
    withdrawn: int = 0
    """Stamps that had a value and have none now."""
    added: int = 0
    """Stamps that were not there."""
    largest_change: float = 0.0
    """Largest absolute difference of a revised value, in its unit."""
    largest_at: datetime | None = None

    @property
    def changed(self) -> bool:
        return bool(self.revised or self.filled or self.withdrawn or self.added)

    def metadata(self) -> dict[str, int | float | str]:
        """For a materialisation."""
        found: dict[str, int | float | str] = {
            "revised": self.revised,
            "filled": self.filled,
            "withdrawn": self.withdrawn,
            "added": self.added,
            "largest_change": self.largest_change,
        }
        return found | ({"largest_change_at": iso(self.largest_at)} if self.largest_at else {})


def compare(old: pl.DataFrame | None, new: pl.DataFrame) -> Revisions:
    """Compare two versions of a region's table (TRACE_SCHEMA); without an old one nothing was revised."""
    if old is None:
        return Revisions()
    keys = ["region", "kind", "time"]
    before = old.select(*keys, before="value", was_there=pl.lit(True))
    after = new.select(*keys, after="value", is_there=pl.lit(True))
    both = before.join(after, on=keys, how="full", coalesce=True).sort("time")
    had, has = pl.col("before").is_not_null(), pl.col("after").is_not_null()
    change = (pl.col("after") - pl.col("before")).abs()
    # Float noise of a unit conversion is no revision.
    revised = both.filter(change > 1e-9 * pl.col("before").abs().clip(1e-6))
    largest = revised.with_columns(change=change).sort("change", descending=True, maintain_order=True).head(1)
    return Revisions(
        revised=len(revised),
        filled=len(both.filter(pl.col("was_there") & ~had & has)),
        withdrawn=len(both.filter(had & ~has)),
        added=len(both.filter(pl.col("was_there").is_null())),
        largest_change=float(largest["change"][0]) if len(largest) else 0.0,
        largest_at=largest["time"][0] if len(largest) else None,
    )
