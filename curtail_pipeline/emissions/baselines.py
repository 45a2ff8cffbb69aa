"""Always-on baselines: the same steps on one cluster in one region, without a pause from the job's start."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

import polars as pl

from curtail_pipeline.emissions.grams import accounting_signals, intervals_table, ledger, totals
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.times import iso, seconds

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Baseline:
    """What one cluster that never pauses would have used in this region."""

    region: str
    site: str
    """The site whose power and speed is assumed."""
    steps: int
    hours: float
    kwh: float
    co2_g: float | None
    """Null when the trace does not cover the time."""
    unaccounted_kwh: float
    reason: str | None = None
    """Why there is no CO2, or what it leaves out."""


def always_on(
    steps: int, started: datetime, site: Site, region: str, traces: pl.DataFrame, *, interpolate: bool = False
) -> Baseline:
    """`steps` at the site's `steps_per_s` and training power, PUE included, from `started` on, in that region.

    Nothing is extrapolated: where the trace does not cover the whole time, energy is reported without CO2.
    """
    end = started + seconds(steps / site.steps_per_s)
    hours = (end - started) / timedelta(hours=1)
    kw = site.training_kw * site.pue
    signal = accounting_signals(traces.filter(pl.col("region") == region)).get(region)
    reason = None
    if signal is None:
        reason = f"no gCO2/kWh trace for {region}"
    elif int(signal.stamps[0]) > (started - EPOCH) // timedelta(microseconds=1):
        first = EPOCH + timedelta(microseconds=int(signal.stamps[0]))
        reason = f"the trace starts at {iso(first)}, after the job at {iso(started)}"
    elif (end - EPOCH) // timedelta(microseconds=1) > signal.end:
        reason = f"the trace ends at {iso(EPOCH + timedelta(microseconds=signal.end))}, the baseline at {iso(end)}"
    if reason is not None:
        return Baseline(region, site.name, steps, hours, hours * kw, None, hours * kw, reason)
    interval = {"site": site.name, "state": "training", "start": started, "end": end, "kw": kw}
    there = site.model_copy(update={"region": region})
    used = totals(ledger(intervals_table([interval]), traces, [there], interpolate=interpolate))
    lost = used["unaccounted_kwh"] or 0.0
    gaps = f"{lost:.3g} kWh fall into gaps of the trace and are not in the CO2" if lost else None
    return Baseline(region, site.name, steps, hours, hours * kw, used["co2_g"], lost, gaps)


def always_on_baselines(
    steps: int,
    started: datetime,
    sites: Sequence[Site],
    traces: pl.DataFrame,
    extra_regions: Sequence[str] = (),
    *,
    interpolate: bool = False,
) -> list[Baseline]:
    """One baseline per site, in its own region, and one per extra region with the first site's cluster."""
    places = [(site, site.region) for site in sites]
    places += [(sites[0], region) for region in extra_regions if region not in {site.region for site in sites}]
    return [always_on(steps, started, site, region, traces, interpolate=interpolate) for site, region in places]


def baselines_table(baselines: Sequence[Baseline], ours: dict[str, float | None]) -> pl.DataFrame:
    """A row per baseline with `ours_of_baseline`: our CO2 (`power.totals`) over the baseline's, null where unknown.

    Unaccounted energy on our side would flatter the ratio, so that it is null then.
    """
    mine = ours["co2_g"] if not ours["unaccounted_kwh"] else None
    rows = [
        {**asdict(b), "ours_of_baseline": mine / b.co2_g if mine is not None and b.co2_g else None} for b in baselines
    ]
    schema = {
        "region": pl.String(),
        "site": pl.String(),
        "steps": pl.Int64(),
        "hours": pl.Float64(),
        "kwh": pl.Float64(),
        "co2_g": pl.Float64(),
        "unaccounted_kwh": pl.Float64(),
        "reason": pl.String(),
        "ours_of_baseline": pl.Float64(),
    }
    return pl.DataFrame(rows, schema=schema)
