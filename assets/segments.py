"""One segment of training per partition: the aggregated checkpoint and its held-out loss."""

from collections.abc import Iterator

import dagster as dg

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.orchestration.interrupts import resending
from curtail_pipeline.orchestration.metadata import checkpoint_observation, evaluation_metadata
from curtail_pipeline.orchestration.on_demand import Mode, OnDemand, answer, committed, mark_segment, skip
from curtail_pipeline.orchestration.partitions import CHECKPOINTS
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.orchestration.runs import SEGMENT_ASSET
from curtail_pipeline.orchestration.story import Story, plain_failure
from curtail_pipeline.stages.check_tokens import DESCRIPTION, TOKEN_LEDGER
from curtail_pipeline.stages.replay_check import DESCRIPTION as REPLAY_DESCRIPTION
from curtail_pipeline.stages.replay_check import REPLAY_IDENTICAL
from curtail_pipeline.stages.run_events import Progress
from curtail_pipeline.storage.checkpoints import FIRST_KEY
from curtail_pipeline.storage.tables import ledger_key

ABOUT = """\
The model after one segment: a Hugging Face folder with the outer optimiser's state and a manifest.

A key that the membership sensor requested is trained by one Flower run over its sites. A key that is committed is
replayed from its parent in scratch and compared, or what the launchpad's config says is done (evaluate, export, extend,
branch); what is committed is never replaced. `ckpt-000000` is the initialised model.
"""


@dg.multi_asset(
    name=SEGMENT_ASSET,
    specs=[
        dg.AssetSpec(
            SEGMENT_ASSET,
            deps=[
                dg.AssetDep("curtailment_windows", partition_mapping=dg.AllPartitionMapping()),
                dg.AssetDep("training_shards", partition_mapping=dg.AllPartitionMapping()),
            ],
            description=ABOUT,
            group_name="training",
            kinds={"pytorch", "flower", "safetensors"},
            owners=["team:training"],
            skippable=True,
        )
    ],
    partitions_def=CHECKPOINTS,
    check_specs=[
        dg.AssetCheckSpec(TOKEN_LEDGER, asset=SEGMENT_ASSET, blocking=True, description=DESCRIPTION),
        dg.AssetCheckSpec(REPLAY_IDENTICAL, asset=SEGMENT_ASSET, description=REPLAY_DESCRIPTION),
    ],
    can_subset=True,  # so that a segment without a step, and a check that has nothing to say, may be left out
)
def aggregated_checkpoint(
    context: dg.AssetExecutionContext,
    config: OnDemand,
    pipeline: PipelineResource,
    progress: dg.ResourceParam[Progress],
) -> Iterator[dg.MaterializeResult]:
    """See `ABOUT`."""
    from curtail_pipeline.stages.initialise import ensure_initialised
    from curtail_pipeline.stages.train import NoStep, read_request, train_segment

    project, key = pipeline.project(), context.partition_key
    observe = Story(context.log, progress)
    with plain_failure(context.log, key), resending(dg.DagsterExecutionInterruptedError):
        if key == FIRST_KEY:
            made = ensure_initialised(project)
            if config.mode is Mode.replay:
                yield committed(project, made)
                return
        if project.checkpoints.exists(key):
            yield answer(project, key, config, observe)
            return
        if config.mode is not Mode.replay:
            raise SettingsError(
                f"{key} is not committed, so there is nothing to {config.mode.value}; let it be trained"
            )
        request = read_request(project, key)
        mark_segment(context, request)
        trained = train_segment(project, request, observe)
        if isinstance(trained, NoStep):
            skip(context, key, trained.reason)
        else:
            yield committed(project, trained)


@dg.asset(
    partitions_def=CHECKPOINTS,
    group_name="training",
    deps=[SEGMENT_ASSET, "heldout_shard"],
    kinds={"pytorch"},
    owners=["team:training"],
)
def checkpoint_evaluation(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """Held-out loss (nats per token), perplexity and bits per byte."""
    from curtail_pipeline.stages.evaluate import evaluate_checkpoint

    project, key = pipeline.project(), context.partition_key
    with plain_failure(context.log, f"the evaluation of {key}"):
        found = evaluate_checkpoint(project, key)
    if project.store.exists(ledger_key(key)):
        context.log_event(checkpoint_observation(project, key))
    return dg.MaterializeResult(metadata=evaluation_metadata(found))
