"""What a run took beside its CO2 by marginal intensity, and how sure that is.

- Software Carbon Intensity (ISO/IEC 21031:2024): (operational + embodied) per functional unit, here a million tokens.
- Location-based CO2: the same energy at the grid's average intensity (GHG Protocol, Scope 2 Guidance).
- Hourly matched share (24/7): of the energy used in each hour at each site, what was curtailed power or the site's own.
- Cost at the market's price, and water on site.

A figure whose input nobody has given is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from curtail_pipeline.emissions.formats import mass, percent
from curtail_pipeline.emissions.grams import CHARGING, Totals, ledger, pieces, totals
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.signals.held import Signal, read_signals

_GIVE = "give sites[].footprint.{} for every site"
HOURS_PER_YEAR = 8_766
"""Of 365.25 days."""


@dataclass(frozen=True)
class Band:
    """Least and most CO2, its parts added up as if they erred in one direction."""

    low_g: float
    high_g: float
    gaps_g: tuple[float, float]
    """What energy at times without a value adds, at its day's lowest and highest intensity."""
    power_g: float
    """Either way, by the error of modelled power."""
    forecast_g: float | None
    """Either way: by how much the newest forecasts of the time missed the signal's CO2; None without forecasts."""


@dataclass(frozen=True)
class Footprint:
    """Of a whole run."""

    embodied_g: float | None
    """The share of the hardware's making that falls to the hours provisioned; None unless every site that was used
    says what its hardware took."""
    sci: float | None
    """gCO2 per million tokens, embodied carbon included."""
    average_co2_g: float | None
    average_unaccounted_kwh: float
    """At times without an average intensity."""
    hourly_matched_share: float | None
    hours_matched_share: float | None
    """Of site-hours with energy, those whose whole energy was matched."""
    cost: Mapping[str, float]
    """By region, in the currency of its prices; of the energy from the grid at times with a price."""
    unpriced_kwh: float
    water_l: float | None
    """None unless every site that was used says what it takes."""
    band: Band | None
    """None where there is no CO2, or a gap that nothing bounds."""


@dataclass(frozen=True)
class FootprintInput:
    """What it is computed from; tables as `grams` defines them."""

    sites: Sequence[Site]
    traces: pl.DataFrame
    intervals: pl.DataFrame
    ledger: pl.DataFrame
    windows: pl.DataFrame
    signals: Mapping[str, Signal]
    forecast: Mapping[str, Signal]
    """By region, what was forecast last for each time; empty where no forecasts were recorded."""
    tokens: int
    power_error: float


def footprint(data: FootprintInput) -> Footprint:
    """All figures of a run."""
    ours = totals(data.ledger)
    embodied = _embodied_g(data)
    whole = None if embodied is None or ours.co2_g is None else ours.co2_g + embodied
    average = totals(_by_kind(data, "average_intensity"))
    matched, hours = _matched(data)
    cost, unpriced = _cost(data)
    return Footprint(
        embodied_g=embodied,
        sci=whole / (data.tokens / 1e6) if whole is not None and data.tokens else None,
        average_co2_g=average.co2_g if average.kwh > average.unaccounted_kwh else None,
        average_unaccounted_kwh=average.unaccounted_kwh,
        hourly_matched_share=matched,
        hours_matched_share=hours,
        cost=cost,
        unpriced_kwh=unpriced,
        water_l=_water_l(data),
        band=_band(data, ours),
    )


def beside_rows(found: Footprint, operational: float | None, power_error: float) -> list[tuple[str, str, str]]:
    """What stands in the report: name, value, and what it is or which setting gives it.

    Args:
        operational: gCO2 per million tokens, without embodied carbon.
    """
    rows = [
        ("SCI, operational", mass(operational), "gCO2 per million tokens (ISO/IEC 21031), nothing embodied"),
        ("SCI", mass(found.sci), "with embodied carbon" if found.sci is not None else _GIVE.format("embodied_kg")),
    ]
    if found.embodied_g is not None:
        rows.append(("embodied carbon", mass(found.embodied_g), "of the hours provisioned, over the hardware's life"))
    known = found.average_co2_g is not None
    lacking = f"; {found.average_unaccounted_kwh:.3g} kWh without one" if found.average_unaccounted_kwh else ""
    note = f"the same energy at the grid's average intensity{lacking}" if known else "no average_intensity trace"
    rows.append(("CO2, location-based", mass(found.average_co2_g), note))
    hours = (
        f"{percent(found.hours_matched_share)} of site-hours wholly" if found.hours_matched_share is not None else ""
    )
    rows.append(("hourly matched (24/7)", percent(found.hourly_matched_share), f"curtailed or on-site power; {hours}"))
    lacking = f"; {found.unpriced_kwh:.3g} kWh without a price" if found.unpriced_kwh else ""
    rows += [
        (f"cost, {region}", f"{money:,.2f}", f"in the currency of the region's prices{lacking}")
        for region, money in found.cost.items()
    ] or [("cost", "–", "no price trace")]
    water = "–" if found.water_l is None else f"{found.water_l:,.1f} l"
    rows.append(("water", water, "on site" if found.water_l is not None else _GIVE.format("water_l_per_kwh")))
    if (band := found.band) is None:
        return rows
    missed = "no forecasts recorded" if band.forecast_g is None else f"forecasts missed {mass(band.forecast_g)}"
    gaps = f"gaps {mass(band.gaps_g[0])} to {mass(band.gaps_g[1])}" if any(band.gaps_g) else "no gaps"
    power = f"{power_error:.0%} of modelled power {mass(band.power_g)}"
    return [*rows, ("CO2, band", f"{mass(band.low_g)} to {mass(band.high_g)}", f"{power}, {gaps}, {missed}")]


def _used(data: FootprintInput) -> list[Site]:
    return [site for site in data.sites if site.name in set(data.ledger.filter(pl.col("hours") > 0)["site"])]


def _embodied_g(data: FootprintInput) -> float | None:
    grams, used = 0.0, _used(data)
    own = data.ledger.filter(pl.col("state") != CHARGING)
    for site in used:
        if site.footprint.embodied_kg is None:
            return None
        hours = float(own.filter(pl.col("site") == site.name)["hours"].sum())
        grams += 1_000 * site.footprint.embodied_kg * hours / (site.footprint.lifetime_years * HOURS_PER_YEAR)
    return grams if used else None


def _water_l(data: FootprintInput) -> float | None:
    litres, used = 0.0, _used(data)
    for site in used:
        if site.footprint.water_l_per_kwh is None:
            return None
        own = data.ledger.filter((pl.col("site") == site.name) & (pl.col("state") != CHARGING))
        litres += float((own["kwh"] + own["battery_kwh"]).sum()) / site.pue * site.footprint.water_l_per_kwh
    return litres if used else None


def _by_kind(data: FootprintInput, kind: str) -> pl.DataFrame:
    """The ledger by another signal of the regions that have it; the others' energy is unaccounted."""
    return ledger(data.intervals, read_signals(data.traces.filter(pl.col("kind") == kind)), data.sites)


def _cost(data: FootprintInput) -> tuple[dict[str, float], float]:
    priced = _by_kind(data, "price").with_columns(
        region=pl.col("site").replace_strict({site.name: site.region for site in data.sites})
    )
    known = priced.filter(pl.col("co2_g").is_not_null() & (pl.col("kwh") > 0))
    sums = known.group_by("region", maintain_order=True).agg(pl.col("co2_g").sum() / 1_000)  # money per MWh
    return dict(sums.iter_rows()), float(priced["unaccounted_kwh"].sum())


def _matched(data: FootprintInput) -> tuple[float | None, float | None]:
    """Shares of energy and of site-hours. What a battery gives was curtailed or the site's own when it was taken."""
    hour = pl.col("start").dt.truncate("1h")
    cut = pieces(_hourly(data.intervals.filter(pl.col("state") != CHARGING)), {}, data.sites, data.windows)
    length = (pl.col("end") - pl.col("start")).dt.total_microseconds() / 3.6e9
    used, own = (pl.col("kw") + pl.col("battery_kw")) * length, (pl.col("on_site_kw") + pl.col("battery_kw")) * length
    clean = pl.when("curtailed").then(used).otherwise(own)
    hours = cut.group_by("site", hour.alias("hour")).agg(used.sum().alias("used"), clean.sum().alias("clean"))
    hours = hours.filter(pl.col("used") > 0)
    if hours.is_empty():
        return None, None
    energy = float(hours.select(pl.min_horizontal("used", "clean").sum()).item()) / float(hours["used"].sum())
    return energy, float((hours["clean"] >= hours["used"] * (1 - 1e-9)).sum()) / len(hours)


def _hourly(intervals: pl.DataFrame) -> pl.DataFrame:
    """Intervals cut at full hours."""
    first, last = pl.col("start").dt.truncate("1h"), pl.col("end").dt.offset_by("-1us").dt.truncate("1h")
    spread = intervals.filter(pl.col("end") > pl.col("start")).with_columns(
        hour=pl.datetime_ranges(first, last, "1h", time_unit="us", time_zone="UTC")
    )
    cut = spread.explode("hour").with_columns(
        start=pl.max_horizontal("start", "hour"), end=pl.min_horizontal("end", pl.col("hour").dt.offset_by("1h"))
    )
    return cut.drop("hour")


def _band(data: FootprintInput, ours: Totals) -> Band | None:
    if ours.co2_g is None or ours.co2_g_low is None or ours.co2_g_high is None:
        return None
    modelled = data.ledger.filter(pl.col("power") == "modelled")
    power = data.power_error * float(modelled["co2_g"].fill_null(0.0).sum())
    missed = None
    if data.forecast:
        both = [region for region in data.forecast if region in data.signals]
        sites = [site for site in data.sites if site.region in both]
        drawn = data.intervals.filter(pl.col("site").is_in([site.name for site in sites]))
        real, said = (
            ledger(drawn, {region: of[region] for region in both}, sites).sort("site", "start", "state")["co2_g"]
            for of in (data.signals, data.forecast)
        )
        missed = abs(float((said - real).fill_null(0.0).sum()))
    gaps = ours.co2_g_low - ours.co2_g, ours.co2_g_high - ours.co2_g
    spread = power + (missed or 0.0)
    return Band(max(0.0, ours.co2_g_low - spread), ours.co2_g_high + spread, gaps, power, missed)
