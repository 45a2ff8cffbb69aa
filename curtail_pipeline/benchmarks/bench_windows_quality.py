"""Do windows find the power that was curtailed? A week of CAISO NP15 with curtailment as its operator reported it.

    curtail bench windows-quality

Precision and recall (hours) and share of curtailed MWh, for marginal intensity, price, curtailed MW and their
combinations, against at least 10 MW curtailed. Expected about 1.00, 0.60 and 0.80 for marginal intensity below 100
g/kWh. A price at or below zero finds nothing: at this hub prices stay above zero while power is curtailed behind local
congestion, which is why a signal is declared per region. A low price (30 USD/MWh, found on this week itself) finds what
the intensity misses.
"""

import os
from pathlib import Path
from typing import TypedDict

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.rule_settings import RuleSettings, SignalRule
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.settings.trace_settings import Column, FileTraces
from curtail_pipeline.signals.provider import make_provider
from curtail_pipeline.windows.quality import judge
from curtail_pipeline.windows.rules import derive_windows

REGION = "CAISO_NP15"
CADENCE_S = 3600.0
RULES = {
    "marginal_intensity < 100 g/kWh": RuleSettings(kind="marginal_intensity", enter=100, exit_delay_s=0),
    "price <= 0": RuleSettings(kind="price", enter=0, exit_delay_s=0),
    "price <= 30": RuleSettings(kind="price", enter=30, exit_delay_s=0),
    "marginal_intensity, default rule": RuleSettings(),
    "curtailed_power, default rule": RuleSettings(kind="curtailed_power"),
    "marginal_intensity or price, default rules": RuleSettings(any_of=[SignalRule(), SignalRule(kind="price")]),
    "marginal_intensity and price, default rules": RuleSettings(all_of=[SignalRule(), SignalRule(kind="price")]),
    "marginal_intensity or price <= 30": RuleSettings(any_of=[SignalRule(), SignalRule(kind="price", enter=30)]),
    "marginal_intensity and price <= 30": RuleSettings(all_of=[SignalRule(), SignalRule(kind="price", enter=30)]),
    "price or curtailed_power, default rules": RuleSettings(
        any_of=[SignalRule(kind="price"), SignalRule(kind="curtailed_power")]
    ),
    "price and curtailed_power, default rules": RuleSettings(
        all_of=[SignalRule(kind="price"), SignalRule(kind="curtailed_power")]
    ),
    "marginal_intensity or curtailed_power, default rules": RuleSettings(
        any_of=[SignalRule(), SignalRule(kind="curtailed_power")]
    ),
    "marginal_intensity and curtailed_power, default rules": RuleSettings(
        all_of=[SignalRule(), SignalRule(kind="curtailed_power")]
    ),
}


class RuleQuality(TypedDict):
    precision: float | None
    recall: float
    share_of_mwh: float
    window_hours: float


class Judgement(TypedDict):
    hours: float
    curtailed_hours: float
    curtailed_gwh: float
    rules: dict[str, RuleQuality]


def run(data: str | None = None) -> Judgement:
    """Judge each rule.

    Args:
        data: the folder of real traces; CURTAIL_TEST_DATA or ../shared/data when not given.

    Raises:
        TraceError: the week is not there.
    """
    root = Path(data or os.environ.get("CURTAIL_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
    path = root / "caiso_np15_weeks" / "vector_high_curtailment_week_v2.csv"
    if not path.is_file():
        raise TraceError(f"no trace {path}; set CURTAIL_TEST_DATA to the folder of real traces")
    provider = make_provider(
        FileTraces(
            path=str(path),
            time_format="%m/%d/%y %H:%M",
            columns={
                "marginal_co2_lbs_per_mwh": Column(region=REGION, kind="marginal_intensity", unit="lb/MWh"),
                "LMP_NP15": Column(region=REGION, kind="price"),
                "Total_Curtailment_NP15_MW": Column(region=REGION, kind="curtailed_power"),
            },
        )
    )
    span = provider.span()
    assert span is not None
    start, end = span
    traces = pl.concat(
        provider.fetch(REGION, start, end, kind) for kind in ("marginal_intensity", "price", "curtailed_power")
    )
    site = Site(name=REGION, region=REGION, training_kw=1, idle_kw=0, steps_per_s=1)
    truth = traces.filter(kind="curtailed_power")
    results: dict[str, RuleQuality] = {}
    for name, rule in RULES.items():
        windows, _ = derive_windows(
            traces,
            [site],
            PolicySettings(name="hysteresis"),
            start=start,
            end=end,
            rules={REGION: rule},
            cadence_s=CADENCE_S,
        )
        quality = judge(windows, truth, CADENCE_S)
        results[name] = {
            "precision": None if quality.precision is None else round(quality.precision, 3),
            "recall": round(quality.recall or 0.0, 3),
            "share_of_mwh": round(quality.share_of_mwh or 0.0, 3),
            "window_hours": round(quality.window_hours, 2),
        }
    return {
        "hours": truth["value"].count() * CADENCE_S / 3600,
        "curtailed_hours": quality.curtailed_hours,
        "curtailed_gwh": round(quality.curtailed_mwh / 1000, 1),
        "rules": results,
    }
