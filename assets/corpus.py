"""Text in, token shards per site out."""

import dagster as dg

from curtail_pipeline.corpus.shard_set import build_heldout, build_site_shards, build_tokenizer
from curtail_pipeline.orchestration.metadata import log_slices, shards_metadata, tokenizer_metadata
from curtail_pipeline.orchestration.partitions import SITES
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.stages.deal import ensure_dealt


@dg.asset(group_name="corpus", kinds={"huggingface"}, owners=["team:training-data"])
def tokenizer(pipeline: PipelineResource) -> dg.MaterializeResult:
    """Byte-level BPE over a bounded deterministic sample of the corpus, loadable with `AutoTokenizer`."""
    project = pipeline.project()
    return dg.MaterializeResult(metadata=tokenizer_metadata(build_tokenizer(project.experiment.corpus, project.store)))


@dg.asset(group_name="corpus", partitions_def=SITES, deps=[tokenizer], kinds={"numpy"}, owners=["team:training-data"])
def training_shards(context: dg.AssetExecutionContext, pipeline: PipelineResource) -> dg.MaterializeResult:
    """A site's share of the corpus as memory-mappable token files; no held-out document is in any of them."""
    project = pipeline.project()
    ensure_dealt(project)
    manifest = build_site_shards(
        project.experiment.corpus, project.store, context.partition_key, log_slices(context.log)
    )
    return dg.MaterializeResult(metadata=shards_metadata(manifest))


@dg.asset(group_name="corpus", deps=[tokenizer], kinds={"numpy"}, owners=["team:training-data"])
def heldout_shard(pipeline: PipelineResource) -> dg.MaterializeResult:
    """Text that no site trains on, chosen by a hash of each document."""
    project = pipeline.project()
    ensure_dealt(project)
    return dg.MaterializeResult(metadata=shards_metadata(build_heldout(project.experiment.corpus, project.store)))
