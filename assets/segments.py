"""One segment of training per partition: the aggregated checkpoint and its held-out loss."""

import dagster as dg

from curtail_pipeline.orchestration.metadata import (
    check_result,
    checkpoint_metadata,
    checkpoint_observation,
    evaluation_metadata,
    replay_metadata,
)
from curtail_pipeline.orchestration.partitions import CHECKPOINTS
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.orchestration.story import Story, plain_failure
from curtail_pipeline.stages.check_tokens import DESCRIPTION, TOKEN_LEDGER, check_tokens
from curtail_pipeline.stages.run_events import Progress
from curtail_pipeline.storage.tables import ledger_key


@dg.asset(
    partitions_def=CHECKPOINTS,
    group_name="training",
    kinds={"pytorch", "flower", "safetensors"},
    owners=["team:training"],
    deps=[
        dg.AssetDep("curtailment_windows", partition_mapping=dg.AllPartitionMapping()),
        dg.AssetDep("training_shards", partition_mapping=dg.AllPartitionMapping()),
    ],
    check_specs=[
        dg.AssetCheckSpec(TOKEN_LEDGER, asset="aggregated_checkpoint", blocking=True, description=DESCRIPTION)
    ],
)
def aggregated_checkpoint(
    context: dg.AssetExecutionContext, pipeline: PipelineResource, progress: dg.ResourceParam[Progress]
) -> dg.MaterializeResult:
    """The model after one segment: a Hugging Face folder with the outer optimiser's state and a manifest.

    A key that the membership sensor requested is trained by one Flower run over its sites. A key that is committed is
    replayed from its parent in scratch and compared; what is committed is never replaced. `ckpt-000000` is the
    initialised model.
    """
    from curtail_pipeline.stages.initialise import ensure_initialised
    from curtail_pipeline.stages.replay import replay_segment
    from curtail_pipeline.stages.train import read_request, train_segment
    from curtail_pipeline.storage.checkpoints import FIRST_KEY

    project, key = pipeline.project(), context.partition_key
    observe = Story(context.log, progress)
    with plain_failure(context.log, key):
        if key == FIRST_KEY:
            metadata = checkpoint_metadata(project, ensure_initialised(project))
        elif project.checkpoints.exists(key):
            metadata = replay_metadata(project, replay_segment(project, key, observe))
        else:
            metadata = checkpoint_metadata(project, train_segment(project, read_request(project, key), observe))
    return dg.MaterializeResult(metadata=metadata, check_results=[check_result(check_tokens(project, key))])


@dg.asset(
    partitions_def=CHECKPOINTS,
    group_name="training",
    deps=[aggregated_checkpoint, "heldout_shard"],
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
