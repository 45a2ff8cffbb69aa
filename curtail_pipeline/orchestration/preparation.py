"""The job `prepare`: all that a first segment needs. The membership sensor requests it on an empty home.

It makes assets of several partitions, which an asset job cannot, so it is made of ops; the events they log are those of
the assets. Two of it at once wait for each other, and the second finds everything there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import dagster as dg
from filelock import FileLock

from curtail_pipeline.corpus.build import stored_manifest
from curtail_pipeline.corpus.dealing import HELDOUT, TOKENIZER
from curtail_pipeline.corpus.shard_set import build_heldout, build_site_shards, build_tokenizer
from curtail_pipeline.orchestration.metadata import (
    Facts,
    check_result,
    checkpoint_metadata,
    ledger_metadata,
    log_slices,
    report_check,
    shards_metadata,
    trace_event,
    windows_event,
)
from curtail_pipeline.orchestration.partitions import CHECKPOINTS
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.orchestration.runs import PREPARE_JOB
from curtail_pipeline.stages.check_tokens import check_tokens
from curtail_pipeline.stages.deal import ensure_dealt
from curtail_pipeline.stages.derive_windows import derive_following, save_derived
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_events import Preparing, Progress
from curtail_pipeline.storage.checkpoints import FIRST_KEY
from curtail_pipeline.storage.tables import windows_key, write_table

Part = Literal["signals", "corpus", "model"]


def missing_parts(project: Project) -> list[Part]:
    """What of the preparation has not been made yet."""
    parts: list[Part] = []
    if any(not project.store.exists(windows_key(day.isoformat())) for day in project.days):
        parts.append("signals")
    if project.checkpoints.exists(FIRST_KEY):
        return parts
    return [*parts, "corpus", "model"]


@contextmanager
def _alone(project: Project) -> Iterator[None]:
    with FileLock(project.home.root / ".prepare.lock"):
        yield


@dg.op(out=dg.Out(dg.Nothing), description="Every region's traces, checked, and the windows of each day of the trace.")
def prepare_signals(
    context: dg.OpExecutionContext, pipeline: PipelineResource, progress: dg.ResourceParam[Progress]
) -> None:
    project = pipeline.project()
    with _alone(project):
        for day in (day.isoformat() for day in project.days):
            if project.store.exists(windows_key(day)):
                continue
            progress(Preparing(f"traces and windows of {day}"))
            for region in project.experiment.regions:
                found = ingest_day(project, region, day)
                for check in found.checks:
                    report_check(context.instance, check, f"{day}|{region}")
                if found.blocked:
                    why = "; ".join(check.description for check in found.blocked)
                    context.log.error(f"{region} {day} is not stored: {why}")
                    continue
                save_ingested(project, found)
                context.log_event(trace_event(found, project))
            for derived in derive_following(project, day):
                save_derived(project, derived)
                context.log_event(windows_event(derived, project))


@dg.op(
    ins={"signals": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing),
    description="Tokenizer, the held-out shard and each site's token shards.",
)
def prepare_corpus(
    context: dg.OpExecutionContext, pipeline: PipelineResource, progress: dg.ResourceParam[Progress]
) -> None:
    project = pipeline.project()
    settings, store = project.experiment.corpus, project.store
    with _alone(project):
        if not store.exists(TOKENIZER):
            progress(Preparing("tokenizer"))
            made = build_tokenizer(settings, store)
            context.log_event(dg.AssetMaterialization("tokenizer", metadata=made.model_dump()))
        ensure_dealt(project)
        if stored_manifest(store, HELDOUT) is None:
            progress(Preparing("heldout shard"))
            heldout = build_heldout(settings, store)
            context.log_event(dg.AssetMaterialization("heldout_shard", metadata=shards_metadata(heldout)))
        for site in project.experiment.sites:
            if stored_manifest(store, site.name) is None:
                progress(Preparing(f"training shards of {site.name}"))
                shards = build_site_shards(settings, store, site.name, log_slices(context.log))
                metadata = shards_metadata(shards)
                context.log_event(dg.AssetMaterialization("training_shards", partition=site.name, metadata=metadata))


@dg.op(ins={"corpus": dg.In(dg.Nothing)}, description="`ckpt-000000`, the initialised model, evaluated and accounted.")
def prepare_model(
    context: dg.OpExecutionContext, pipeline: PipelineResource, progress: dg.ResourceParam[Progress]
) -> None:
    from curtail_pipeline.stages.account import checkpoint_ledger, ledger_key
    from curtail_pipeline.stages.evaluate import evaluate_checkpoint
    from curtail_pipeline.stages.initialise import ensure_initialised

    project = pipeline.project()
    with _alone(project):
        if project.checkpoints.exists(FIRST_KEY):
            return
        progress(Preparing("the initialised model"))
        context.instance.add_dynamic_partitions(CHECKPOINTS.name or "", [FIRST_KEY])
        made = ensure_initialised(project)

        def tell(asset: str, metadata: Facts) -> None:
            context.log_event(dg.AssetMaterialization(asset, partition=FIRST_KEY, metadata=metadata))

        tell("aggregated_checkpoint", checkpoint_metadata(project, made))
        ledger = check_result(check_tokens(project, FIRST_KEY))
        context.instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("aggregated_checkpoint"),
                check_name=ledger.check_name or "",
                passed=ledger.passed,
                severity=ledger.severity,
                description=ledger.description,
                metadata=ledger.metadata,
            )
        )
        tell("checkpoint_evaluation", evaluate_checkpoint(project, FIRST_KEY).model_dump(exclude={"schema_"}))
        table = checkpoint_ledger(project, FIRST_KEY)
        write_table(project.store, ledger_key(FIRST_KEY), table)
        tell("emissions_ledger", ledger_metadata(table))


@dg.job(
    name=PREPARE_JOB,
    executor_def=dg.in_process_executor,
    description="Traces, windows, tokenizer, token shards and ckpt-000000: whatever of it is missing.",
)
def prepare() -> None:
    prepare_model(prepare_corpus(prepare_signals()))
