"""Text in, token shards per site out."""

import dagster as dg

from curtail_pipeline.corpus.shard_set import build_heldout, build_site_shards, build_tokenizer
from curtail_pipeline.orchestration.metadata import log_slices, shards_metadata, tokenizer_metadata
from curtail_pipeline.orchestration.partitions import EXPERIMENT, SITES
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.stages.deal import ensure_dealt, shares_gap, shares_need_traces
from curtail_pipeline.stages.project import Project


@dg.asset(group_name="corpus", kinds={"huggingface"}, owners=["team:training-data"])
def tokenizer(pipeline: PipelineResource) -> dg.MaterializeResult:
    """Byte-level BPE over a bounded deterministic sample of the corpus, loadable with `AutoTokenizer`."""
    project = pipeline.project()
    return dg.MaterializeResult(metadata=tokenizer_metadata(build_tokenizer(project.experiment.corpus, project.store)))


DEALT_BY: list[dg.AssetsDefinition | dg.AssetDep] = (
    [tokenizer, dg.AssetDep("carbon_traces", partition_mapping=dg.AllPartitionMapping())]
    if shares_need_traces(EXPERIMENT)
    else [tokenizer]
)
"""What the dealing reads: with `corpus.shares: expected`, all traces."""
WHOLE_TRACES = "shares_on_whole_traces"


def _shares_check(context: dg.AssetExecutionContext, project: Project) -> dg.AssetCheckResult:
    gap = shares_gap(project)
    if gap is not None:
        context.log.warning(gap)
    return dg.AssetCheckResult(
        passed=gap is None,
        check_name=WHOLE_TRACES,
        severity=dg.AssetCheckSeverity.WARN,
        description=gap or "no day that the shares count on was missing",
    )


@dg.asset(
    group_name="corpus",
    partitions_def=SITES,
    deps=DEALT_BY,
    kinds={"numpy"},
    owners=["team:training-data"],
    check_specs=[
        dg.AssetCheckSpec(
            WHOLE_TRACES,
            asset="training_shards",
            description="When the shares were frozen by expected hours, no day of a site's region was missing.",
        )
    ],
)
def training_shards(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """A site's share of the corpus as memory-mappable token files; no held-out document is in any of them."""
    project = pipeline.project()
    ensure_dealt(project)
    manifest = build_site_shards(
        project.experiment.corpus, project.store, context.partition_key, log_slices(context.log)
    )
    return dg.MaterializeResult(metadata=shards_metadata(manifest), check_results=[_shares_check(context, project)])


@dg.asset(group_name="corpus", deps=DEALT_BY, kinds={"numpy"}, owners=["team:training-data"])
def heldout_shard(pipeline: PipelineResource) -> dg.MaterializeResult:
    """Text that no site trains on, chosen by a hash of each document."""
    project = pipeline.project()
    ensure_dealt(project)
    return dg.MaterializeResult(metadata=shards_metadata(build_heldout(project.experiment.corpus, project.store)))
