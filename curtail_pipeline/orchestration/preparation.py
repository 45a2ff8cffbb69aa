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
    evaluation_metadata,
    ingestion_metadata,
    ledger_metadata,
    log_slices,
    shards_metadata,
    tokenizer_metadata,
    trace_events,
    windows_facts,
)
from curtail_pipeline.orchestration.partitions import CHECKPOINTS
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.orchestration.runs import PREPARE_JOB
from curtail_pipeline.stages.check_tokens import check_tokens
from curtail_pipeline.stages.deal import ensure_dealt, shares_gap
from curtail_pipeline.stages.derive_windows import derive_days, save_derived
from curtail_pipeline.stages.ingest_days import Attempt, ingest_regions
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_events import Incomplete, Preparing, Progress
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
        days = [day.isoformat() for day in project.days if not project.store.exists(windows_key(day.isoformat()))]
        if not days:
            return
        progress(Preparing(f"traces and windows of {days[0] if len(days) == 1 else f'{days[0]} to {days[-1]}'}"))
        by_day: dict[str, list[Attempt]] = {day: [] for day in days}
        for ingested in ingest_regions(project, days):
            for event in trace_events(ingested, project):
                if isinstance(event, dg.AssetMaterialization):
                    context.log_event(event)
                else:  # an op has no checks of its own
                    context.instance.report_runless_asset_event(event)
            attempt = ingested.attempt
            by_day[attempt.day.isoformat()].append(attempt)
            if attempt.reason is not None:  # its windows stay closed; the others are prepared all the same
                context.log.error(f"{attempt.region} {attempt.day} is not stored: {attempt.reason}")
                progress(Incomplete(f"{attempt.region} {attempt.day} is not stored: {attempt.reason}"))
        for day, attempts in by_day.items():
            metadata = ingestion_metadata(attempts)
            context.log_event(dg.AssetMaterialization("trace_ingestion", partition=day, metadata=metadata))
        for derived in derive_days(project, days):
            save_derived(project, derived)
            facts, day = windows_facts(derived, project, plot=False), derived.day.isoformat()
            context.log_event(dg.AssetMaterialization("curtailment_windows", partition=day, metadata=facts))


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
        if not store.exists(f"{TOKENIZER}/tokenizer.json"):
            progress(Preparing("tokenizer"))
            made = build_tokenizer(settings, store)
            context.log_event(dg.AssetMaterialization("tokenizer", metadata=tokenizer_metadata(made)))
        ensure_dealt(project)
        if gap := shares_gap(project):
            context.log.warning(gap)
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
    from curtail_pipeline.stages.account import checkpoint_ledger
    from curtail_pipeline.stages.evaluate import evaluate_checkpoint
    from curtail_pipeline.stages.initialise import ensure_initialised
    from curtail_pipeline.storage.tables import ledger_key

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
        tell("checkpoint_evaluation", evaluation_metadata(evaluate_checkpoint(project, FIRST_KEY)))
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
