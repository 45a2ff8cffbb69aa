"""Partitions of the experiment that this code location serves.

Regions, sites and days come from the experiment named by `CURTAIL_EXPERIMENT` when the location is loaded; another
experiment is another location. Checkpoints are added while training goes on.
"""

import os
import warnings
from collections.abc import Sequence
from datetime import timedelta

import dagster as dg

from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.stages.project import EXPERIMENT_ENV, recorded_days

# What this location uses of Dagster 1.13 under these names: backfill policies, the mapping from a region's day to the
# day (beta), and checks by partition (preview). The version is pinned; users can do nothing about it.
for _kind in (dg.BetaWarning, dg.PreviewWarning):
    warnings.filterwarnings("ignore", category=_kind)

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

RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def range_tags(days: Sequence[str]) -> dict[str, str]:
    """Tags of one run over consecutive days; Dagster gives such a run its partitions."""
    return {RANGE_START: days[0], RANGE_END: days[-1]}


ALL_REGIONS = dg.MultiToSingleDimensionPartitionMapping(partition_dimension_name="day")
"""The one mapping the UI understands from a region's day to the day."""
