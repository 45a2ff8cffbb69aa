"""Partitions of the experiment that this code location serves.

Regions, sites and days come from the experiment named by `CURTAIL_EXPERIMENT` when the location is loaded; another
experiment is another location. Checkpoints are added while training goes on.
"""

import os
import warnings
from datetime import timedelta

import dagster as dg

from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.stages.project import EXPERIMENT_ENV, recorded_days

_NAMED = os.environ.get(EXPERIMENT_ENV, "laptop")
EXPERIMENT = load_experiment(_NAMED)
_FIRST, _LAST = recorded_days(_NAMED)

DAYS = dg.DailyPartitionsDefinition(
    start_date=_FIRST.isoformat(),
    end_date=(_LAST + timedelta(days=1)).isoformat() if _LAST else None,
    timezone="UTC",
    end_offset=0 if _LAST else 1,  # a live signal has a partition for today, still growing
)
REGIONS = dg.StaticPartitionsDefinition(EXPERIMENT.regions)
DAY_AND_REGION = dg.MultiPartitionsDefinition({"day": DAYS, "region": REGIONS})
SITES = dg.StaticPartitionsDefinition([site.name for site in EXPERIMENT.sites])
CHECKPOINTS = dg.DynamicPartitionsDefinition(name="checkpoints")

with warnings.catch_warnings():
    # Beta in Dagster 1.13, but the one mapping the UI understands from a region's day to the day.
    warnings.simplefilter("ignore", dg.BetaWarning)
    ALL_REGIONS = dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name="day")
