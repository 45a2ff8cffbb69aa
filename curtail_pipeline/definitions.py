"""The code location that `workspace.yaml` loads.

`CURTAIL_EXPERIMENT` names the experiment it serves (default `laptop`), `CURTAIL_CLOCK` its clock (`live`, `replay` or
`headless`). Loading it imports neither torch nor flwr.
"""

import os
import warnings

import dagster as dg

from assets import corpus, emissions, policies_compared, segments, traces
from curtail_pipeline.orchestration.code_links import with_code_links
from curtail_pipeline.orchestration.io import TableIOManager
from curtail_pipeline.orchestration.jobs import (
    corpus_preparation,
    daily_pipeline,
    federated_rounds,
    intraday_pipeline,
    local_training,
    reporting,
)
from curtail_pipeline.orchestration.migrations import read_migrations_once
from curtail_pipeline.orchestration.preparation import prepare
from curtail_pipeline.orchestration.resources import PipelineResource, silent
from curtail_pipeline.stages.project import CLOCK_ENV, EXPERIMENT_ENV, store_of
from curtail_pipeline.stages.run_events import Progress
from curtail_pipeline.storage.folder_store import is_uri
from sensors.automation import automation
from sensors.failures import failure_sensor
from sensors.membership import membership_sensor
from sensors.provisioning import provisioning_sensor
from sensors.reaper import reaper_sensor
from sensors.schedules import daily_pipeline_schedule, intraday_schedule

ASSETS = [traces, corpus, segments, emissions, policies_compared]


def _pipeline(experiment: str, clock: str) -> PipelineResource:
    if not is_uri(store_of(experiment)):
        return PipelineResource(experiment=experiment, clock=clock)
    from curtail_pipeline.orchestration.bucket_resource import BucketPipelineResource, s3_resource

    return BucketPipelineResource(experiment=experiment, clock=clock, s3=s3_resource())


def build(progress: Progress = silent) -> dg.Definitions:
    """The definitions, reporting a segment's progress to `progress` as well as to the Dagster log."""
    read_migrations_once()
    pipeline = _pipeline(os.environ.get(EXPERIMENT_ENV, "laptop"), os.environ.get(CLOCK_ENV, "live"))
    found = dg.Definitions(
        assets=with_code_links(dg.load_assets_from_modules(ASSETS)),
        asset_checks=dg.load_asset_checks_from_modules(ASSETS),
        jobs=[
            prepare,
            daily_pipeline,
            intraday_pipeline,
            corpus_preparation,
            local_training,
            federated_rounds,
            reporting,
        ],
        sensors=[membership_sensor, provisioning_sensor, reaper_sensor, failure_sensor, automation],
        schedules=[daily_pipeline_schedule, intraday_schedule],
        resources={
            "pipeline": pipeline,
            **pipeline.nested(),
            "tables": TableIOManager(pipeline=pipeline),
            "progress": dg.ResourceDefinition.hardcoded_resource(progress),
        },
        executor=dg.in_process_executor,
    )
    with warnings.catch_warnings():
        # Binding the resources of a sensor's op job warns of a parameter that is not used here.
        warnings.simplefilter("ignore", dg.BetaWarning)
        found.get_repository_def()
    return found


defs = build()
