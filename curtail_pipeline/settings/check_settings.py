"""The `checks` section: from where on a trace is not believed."""

from typing import Final

from pydantic import Field

from curtail_pipeline.settings.section import Section

FROZEN_S: Final = 6 * 3600.0
"""Longest legal run of one value other than zero. The longest in 28 months of California: 4.8 h, at a cap."""
FROZEN_VALUES: Final = 24
"""... and of at least so many values, so that an hourly feed may repeat itself."""


class CheckLimits(Section):
    """The defaults pass every real trace that the tests know and fail its wrong units."""

    intensity_p95_g_per_kwh: float = 950.0
    """The 95th percentile of intensities above this looks like lb/MWh. Real marginal traces in g/kWh: 450 to 890
    (California, Texas, South Australia, Germany); the same regions in lb/MWh: 980 to 1,950. Raise it for a region
    that really burns lignite or oil at the margin."""
    intensity_least_g_per_kwh: float = 2.0
    """A largest intensity below this, and not zero, looks like kg/kWh (fossil units: 0.2 to 1.2)."""
    intensity_max_g_per_kwh: float = 2000.0
    """No unit emits more; the dirtiest oil and lignite units reach about 1,500."""
    price_min: float = -2000.0
    """Floors: -1,000 AUD (NEM), -500 EUR (day ahead in Europe), -150 USD (CAISO)."""
    price_max: float = 25_000.0
    """Caps: 20,300 AUD (NEM 2025-26), 15,000 EUR (Europe, balancing), 5,000 USD (ERCOT)."""
    curtailed_max_mw: float = 100_000.0
    gap_share: float = Field(default=0.1, ge=0, le=1)
    """Of the stamps of a day may have no value."""
    frozen_s: float = Field(default=FROZEN_S, gt=0)
    frozen_values: int = Field(default=FROZEN_VALUES, ge=1)
    stale_s: float = Field(default=3600.0, gt=0)
    """Age of the newest value of a live source."""
