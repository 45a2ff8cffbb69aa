"""Parameters of the synthetic merit-order model: the paper's four regions, and a seeded draw for any other name."""

from dataclasses import dataclass
from zlib import crc32

import numpy as np


@dataclass(frozen=True)
class RegionModel:
    """A region's power system. Powers are in units of its mean demand, which is `demand_mw`."""

    latitude: float
    longitude: float
    timezone: str
    demand_mw: float
    solar: float
    """Installed solar capacity."""
    wind: float
    """Installed wind capacity."""
    wind_mean: float
    """Median capacity factor of wind."""
    wind_diurnal: float
    """Amplitude of wind's daily cycle (logit), highest at 2 h local solar time (nocturnal jet)."""
    must_run: float
    """Nuclear, run-of-river and units kept on for inertia."""
    export: float
    """What neighbours and storage absorb at most, in the mean."""
    export_sigma: float
    """Spread of it: outages and congestion on the lines out."""
    evening_peak: float
    """Height of the evening peak of demand over its mean."""
    floor_g: float
    """Marginal intensity while curtailed: the fossil share of an extra kWh that congestion and losses leave."""
    stack: tuple[tuple[float, float, float], ...]
    """Thermal stack in merit order: (cumulative capacity, intensity g/kWh, short-run cost per MWh)."""
    wind_hours: float = 4.0
    """Correlation time of wind."""


_GAS = ((0.35, 380.0, 32.0), (0.75, 430.0, 40.0), (1.4, 560.0, 75.0))

BUILT_IN: dict[str, RegionModel] = {
    "CAISO_NORTH": RegionModel(
        latitude=38.5,
        longitude=-121.5,
        timezone="America/Los_Angeles",
        demand_mw=11_000,
        solar=1.3,
        wind=0.85,
        wind_mean=0.38,
        wind_diurnal=0.4,
        must_run=0.26,
        export=0.2,
        export_sigma=0.26,
        evening_peak=0.22,
        floor_g=45.0,
        stack=_GAS,
    ),
    "SPP_TX": RegionModel(
        latitude=34.5,
        longitude=-101.5,
        timezone="America/Chicago",
        demand_mw=6_000,
        solar=0.8,
        wind=1.6,
        wind_mean=0.42,
        wind_diurnal=0.35,
        must_run=0.16,
        export=0.32,
        export_sigma=0.26,
        evening_peak=0.15,
        floor_g=8.0,
        stack=((0.3, 640.0, 22.0), (0.6, 820.0, 27.0), (1.4, 470.0, 45.0)),
    ),
    "NEM_SA": RegionModel(
        latitude=-34.0,
        longitude=138.6,
        timezone="Australia/Adelaide",
        demand_mw=1_500,
        solar=1.45,
        wind=1.7,
        wind_mean=0.42,
        wind_diurnal=0.2,
        must_run=0.06,
        export=0.36,
        export_sigma=0.3,
        evening_peak=0.2,
        floor_g=0.0,
        stack=((0.3, 830.0, 55.0), (0.7, 800.0, 90.0), (1.4, 640.0, 140.0)),
    ),
    "DE": RegionModel(
        latitude=51.0,
        longitude=10.0,
        timezone="Europe/Berlin",
        demand_mw=55_000,
        solar=1.15,
        wind=1.1,
        wind_mean=0.24,
        wind_diurnal=0.1,
        must_run=0.12,
        export=0.75,
        export_sigma=0.12,
        evening_peak=0.1,
        floor_g=20.0,
        stack=((0.35, 820.0, 60.0), (0.6, 720.0, 75.0), (1.4, 420.0, 95.0)),
    ),
}
"""The paper's four regions, roughly: California solar-heavy, Texas panhandle and South Australia windy, Germany large
and well connected. Chosen for plausible shapes, not fitted."""

_ZONES = {
    "America/Los_Angeles": -120.0,
    "America/Denver": -105.0,
    "America/Chicago": -97.0,
    "America/New_York": -76.0,
    "Europe/London": -2.0,
    "Europe/Berlin": 10.0,
    "Europe/Athens": 23.0,
    "Asia/Kolkata": 78.0,
    "Australia/Adelaide": 138.0,
    "Australia/Sydney": 149.0,
}
"""Time zones of drawn regions, with a longitude inside each."""


def region_model(region: str, seed: int) -> RegionModel:
    """The built-in parameters of a region, or a seeded draw for any other name."""
    if region in BUILT_IN:
        return BUILT_IN[region]
    draw = np.random.default_rng([seed & 0xFFFFFFFF, crc32(region.encode())])
    zone, meridian = list(_ZONES.items())[int(draw.integers(len(_ZONES)))]
    south = zone.startswith("Australia")
    heights = np.sort(draw.uniform(360, 850, 3))
    if draw.random() < 0.5:
        heights = heights[::-1]
    return RegionModel(
        latitude=float(draw.uniform(25, 55)) * (-1 if south else 1),
        longitude=meridian + float(draw.uniform(-4, 4)),
        timezone=zone,
        demand_mw=float(np.exp(draw.uniform(7, 11))),
        solar=float(draw.uniform(0.2, 1.3)),
        wind=float(draw.uniform(0.2, 1.4)),
        wind_mean=float(draw.uniform(0.25, 0.42)),
        wind_diurnal=float(draw.uniform(0.0, 0.5)),
        must_run=float(draw.uniform(0.05, 0.25)),
        export=float(draw.uniform(0.15, 0.45)),
        export_sigma=float(draw.uniform(0.08, 0.25)),
        evening_peak=float(draw.uniform(0.1, 0.25)),
        floor_g=float(draw.choice([0.0, 0.0, 20.0, 45.0])),
        stack=tuple((c, float(g), p) for c, g, p in zip((0.35, 0.7, 1.4), heights, (30.0, 45.0, 80.0), strict=True)),
    )
