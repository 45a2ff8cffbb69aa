"""Synthetic traces: a merit-order model per region. Not data; every row says `source = synthetic`.

Renewables and must-run units serve demand first; a thermal stack serves the rest, and the unit at the margin sets the
marginal intensity and the price. When renewables exceed what demand, exports and storage absorb, the excess is
curtailed, one more kWh of load costs (almost) no fossil fuel, and the intensity falls to the region's floor. So values
are bimodal, as real marginal intensities are (WattTime's CAISO_NORTH stays at 43-70 g/kWh while curtailed and NEM_SA
at 0, both 350-850 otherwise).

Randomness is a hash of (seed, region, process, time), so a value depends on nothing but these and the region's
parameters: not on how a range is split, nor on which other regions are asked for.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import Kind, SyntheticTraces
from curtail_pipeline.signals.noise import autocorrelated, region_keys
from curtail_pipeline.signals.provider import Provider
from curtail_pipeline.signals.synthetic_regions import BUILT_IN, region_model
from curtail_pipeline.signals.trace import CANONICAL_UNIT, Ingested, normalise
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.times import TIME, times_column, utc_now

MODEL = "merit-order-1"
"""Version of the model; a change of values changes it."""

SYNTHETIC_KINDS: tuple[Kind, ...] = ("marginal_intensity", "curtailed_power", "price")

_DAY_S = 86_400
_HOURS_OF_MEMORY = 96
_FAST_MEMORY = 12
_CHUNK_VALUES = 200_000


def _sun(epoch_s: np.ndarray, latitude: np.ndarray, longitude: np.ndarray) -> np.ndarray:
    """Cosine of the sun's zenith angle [R, T] (Cooper 1969 declination, Spencer 1971 equation of time)."""
    # Both vary slowly: the values of the half hour are within 0.01 degrees and 0.02 min.
    halves, index = np.unique(epoch_s.astype(np.int64) // 1800, return_inverse=True)
    day = (halves / 48) % 365.2425
    gamma = 2 * np.pi * day / 365.2425
    declination = (np.radians(23.45) * np.sin(2 * np.pi * (284 + day + 1) / 365))[index]
    equation_min = (229.18 * (
        0.000075 + 0.001868 * np.cos(gamma) - 0.032077 * np.sin(gamma)
        - 0.014615 * np.cos(2 * gamma) - 0.040849 * np.sin(2 * gamma)
    ))[index]  # fmt: skip
    solar_hour = (epoch_s % _DAY_S) / 3600 + equation_min / 60 + longitude / 15
    angle = np.radians(15 * (solar_hour - 12))
    phi = np.radians(latitude)
    return np.sin(phi) * np.sin(declination) + np.cos(phi) * np.cos(declination) * np.cos(angle)


def _local(epoch_s: np.ndarray, zone: str) -> tuple[np.ndarray, np.ndarray]:
    """Local hour of the day and weekday (Monday = 1) under the zone's civil time, with DST. [T] each."""
    # Zones change their offset on half hours, so that few stamps need a conversion.
    halves, index = np.unique(epoch_s.astype(np.int64) // 1800, return_inverse=True)
    stamps = times_column(halves * 1_800_000_000)
    local = stamps.dt.convert_time_zone(zone).dt.replace_time_zone(None)
    offset = local.dt.epoch("s").to_numpy() - halves * 1800
    seconds = epoch_s.astype(np.int64) + offset[index]
    return seconds % _DAY_S / 3600, (seconds // _DAY_S + 3) % 7 + 1


def _demand_shape(hour: np.ndarray, weekday: np.ndarray, peak: float) -> np.ndarray:
    """Demand over its mean: night trough, morning shoulder, evening peak, and 8 % less at weekends."""

    def bump(centre: float, width: float) -> np.ndarray:
        distance = np.abs(hour - centre)
        return np.exp(-0.5 * (np.minimum(distance, 24 - distance) / width) ** 2)

    shape = 0.97 + 0.06 * bump(8.5, 2.0) + peak * bump(19.0, 2.5) - 0.17 * bump(3.5, 3.0)
    return shape * np.where(weekday >= 6, 0.92, 1.0)


def simulate(
    regions: Sequence[str], start: datetime, end: datetime, *, seed: int, cadence_s: int = 300
) -> dict[Kind, np.ndarray]:
    """Run the model for any number of regions.

    Returns:
        Values [regions, stamps] per kind, at `start, start + cadence_s, ...` before `end`: marginal_intensity in
        g/kWh, curtailed_power in MW, price in currency/MWh.
    """
    # A chunk's working arrays stay in the processor's cache.
    days = (end - start) / timedelta(days=1) + 2
    size = max(1, int(_CHUNK_VALUES / (days * _DAY_S / cadence_s)))
    chunks = [_simulate(regions[i : i + size], start, end, seed, cadence_s) for i in range(0, len(regions), size)]
    return {kind: np.concatenate([chunk[kind] for chunk in chunks]) for kind in SYNTHETIC_KINDS}


def _simulate(
    regions: Sequence[str], start: datetime, end: datetime, seed: int, cadence_s: int
) -> dict[Kind, np.ndarray]:
    first, last = int(start.timestamp()), int(end.timestamp())
    # Whole days, so that an element's value never depends on where the range is cut.
    low, high = first - first % _DAY_S, last + -last % _DAY_S
    epoch = np.arange(low, high, cadence_s, dtype=np.float64)
    models = [region_model(region, seed) for region in regions]
    keys = region_keys(regions, seed)

    def column(name: str) -> np.ndarray:
        return np.array([getattr(model, name) for model in models], dtype=np.float64)[:, None]

    hours = np.arange(low // 3600, high // 3600 + 1)
    position = epoch / 3600 - hours[0]
    index = position.astype(np.int64)
    weight = position - index
    fast = np.arange(low // cadence_s, low // cadence_s + len(epoch))

    def slow(process: int, hours_of_correlation: np.ndarray | float) -> np.ndarray:
        decay = np.exp(-1.0 / np.broadcast_to(hours_of_correlation, keys.shape).astype(np.float64))
        knots = autocorrelated(keys, process, hours, decay, _HOURS_OF_MEMORY)
        return knots[:, index] * (1 - weight) + knots[:, index + 1] * weight

    def quick(process: int) -> np.ndarray:
        decay = np.full(keys.shape, np.exp(-cadence_s / 1500.0))
        return autocorrelated(keys, process, fast, decay, _FAST_MEMORY)

    latitude, longitude = column("latitude"), column("longitude")
    height = np.maximum(_sun(epoch, latitude, longitude), 0.0)
    # Meinel clear sky: transmittance 0.7 ** (air mass ** 0.678); the root stands for single-axis tracking.
    air_mass = 1.0 / np.maximum(height, 0.02)
    clear = 1.3 * 0.7 ** (air_mass**0.678) * np.sqrt(height)
    cloud = 1.0 / (1.0 + np.exp(-(1.7 + 1.3 * slow(0, 5.0) + 0.25 * quick(1))))
    solar = column("solar") * np.minimum(clear, 1.0) * cloud

    median = column("wind_mean")
    solar_hour = (epoch % _DAY_S) / 3600 + longitude / 15
    jet = column("wind_diurnal") * np.cos(2 * np.pi * (solar_hour - 2) / 24)
    logit = np.log(median / (1 - median)) + jet + 1.15 * slow(2, column("wind_hours")) + 0.1 * quick(3)
    wind = column("wind") / (1.0 + np.exp(-logit))

    shapes = np.empty((len(models), len(epoch)))
    clocks = {zone: _local(epoch, zone) for zone in {model.timezone for model in models}}
    for row, model in enumerate(models):
        shapes[row] = _demand_shape(*clocks[model.timezone], model.evening_peak)
    demand = shapes * (1 + 0.03 * slow(4, 12.0))

    absorb = np.maximum(column("export") + column("export_sigma") * slow(6, 2.5), 0.0)
    residual = demand - column("must_run") - solar - wind
    excess = -residual - absorb
    curtailed = np.minimum(np.maximum(excess, 0.0), solar + wind)
    # Below zero the region exports, and the neighbour's cheapest unit is at the margin.
    thermal = np.maximum(residual, 0.0)
    intensity, cost = np.empty_like(thermal), np.empty_like(thermal)
    for row, model in enumerate(models):
        capacity, grams, money = (np.array(values) for values in zip(*model.stack, strict=True))
        middles = np.r_[0.0, (capacity[:-1] + capacity[1:]) / 2]
        intensity[row] = np.interp(thermal[row], middles, grams)
        cost[row] = np.interp(thermal[row], middles, money)
    intensity = np.maximum(intensity * (1 + 0.02 * quick(7)), 1.0)
    floor = np.clip(column("floor_g") * (1 + 0.2 * slow(8, 3.0)), 0.0, 70.0)
    is_curtailed = excess > 0
    scale = column("demand_mw")
    price = np.where(is_curtailed, -np.minimum(30.0, 400.0 * curtailed), cost)
    cut = slice((first - low) // cadence_s, None if last == high else (last - low + cadence_s - 1) // cadence_s)
    return {
        "marginal_intensity": np.round(np.where(is_curtailed, floor, intensity), 1)[:, cut],
        "curtailed_power": np.round(curtailed * scale, 1)[:, cut],
        "price": np.round(price, 2)[:, cut],
    }


class SyntheticProvider(Provider):
    """The merit-order model as a provider. Every region name has a model, so `regions()` is None."""

    def __init__(self, settings: SyntheticTraces) -> None:
        self.settings = settings
        if _DAY_S % settings.cadence_s:
            raise TraceError(
                f"synthetic cadence_s {settings.cadence_s} does not divide a day of {_DAY_S} s; use 300, 900 or 3600"
            )

    def ingest(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> Ingested:
        chosen = kind or "marginal_intensity"
        if chosen not in SYNTHETIC_KINDS:
            raise TraceError(
                f"the synthetic provider has no {chosen} for region {region!r}; it has {', '.join(SYNTHETIC_KINDS)}"
            )
        cadence = self.settings.cadence_s
        low, high = self.span()
        low, high = max(start, low), min(end, high)
        epoch = np.arange(-(-int(low.timestamp()) // cadence) * cadence, int(high.timestamp()), cadence, dtype=np.int64)
        values = np.empty(0)
        if len(epoch):
            begin = low + timedelta(seconds=float(epoch[0] - low.timestamp()))
            values = simulate([region], begin, high, seed=self.settings.seed, cadence_s=cadence)[chosen][0]
        points = pl.DataFrame(
            {"time": pl.Series(epoch * 1_000_000).cast(TIME), "value": values, "model": [MODEL] * len(values)}
        )
        found = normalise(
            points,
            region=region,
            kind=chosen,
            unit=CANONICAL_UNIT[chosen],
            source="synthetic",
            start=low,
            end=max(low, high),
            retrieved_at=utc_now().replace(microsecond=0),
            cadence_s=cadence,
        )
        return replace(found, report=replace(found.report, screened=True))

    def regions(self) -> list[str] | None:
        return None

    def kinds(self, region: str) -> list[Kind]:
        return list(SYNTHETIC_KINDS)

    def span(self) -> tuple[datetime, datetime]:
        start = self.settings.start
        return start, start + timedelta(days=self.settings.days)

    def fingerprint(self, hash_file: Callable[[Path], str] = file_sha256) -> str:
        content = [MODEL, self.settings.model_dump_json(), *(repr(asdict(model)) for model in BUILT_IN.values())]
        return hashlib.sha256("\n".join(content).encode()).hexdigest()
