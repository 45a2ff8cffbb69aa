"""Traces of one region, minute by minute."""

from datetime import UTC, datetime, timedelta

import polars as pl

from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.sites import Site

START = datetime(2026, 1, 11, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
SITE = Site(name="site", region="R", training_kw=2, idle_kw=0.5, steps_per_s=1)
PAPER = PolicySettings(name="paper")
PLAIN = PolicySettings(name="threshold")


def trace(values, *, kind="marginal_intensity", step=5, first=0, region="R", estimated=None):
    return pl.DataFrame(
        {
            "time": [START + (first + i * step) * MINUTE for i in range(len(values))],
            "region": [region] * len(values),
            "value": values,
            "kind": [kind] * len(values),
            "estimated": estimated or [False] * len(values),
        },
        schema={
            "time": pl.Datetime("us", "UTC"),
            "region": pl.String,
            "value": pl.Float64,
            "kind": pl.String,
            "estimated": pl.Boolean,
        },
    )
