"""The model card of a checkpoint, from what the store knows of its lineage."""

import polars as pl

from curtail_pipeline.emissions.basis import is_synthetic
from curtail_pipeline.emissions.grams import accounting_signals, below_share, totals
from curtail_pipeline.emissions.model_card import CardInput, model_card
from curtail_pipeline.errors import StoreError
from curtail_pipeline.scheduling.view import max_signal_ages
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.signals.held import ACCOUNTING_KINDS, accounting_kind
from curtail_pipeline.stages.account import compared, days_of, power_of, stored_ledgers
from curtail_pipeline.stages.evaluate import stored_loss
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_report import threshold_of

_DATASETS = "hf://datasets/"


def card_of(project: Project, key: str) -> str:
    """The model card of a checkpoint.

    Raises:
        StoreError: no such checkpoint, or its emissions have not been accounted.
    """
    experiment = project.experiment
    lineage = [project.checkpoints.manifest(name) for name in project.checkpoints.lineage(key)]
    ledgers = stored_ledgers(project)
    if ledgers is None:
        raise StoreError(f"no emissions ledger in {project.store.uri}; materialise emissions_ledger for {key}")
    own = ledgers.filter(pl.col("checkpoint").is_in([manifest.key for manifest in lineage]))
    traces = project.traces(project.days)
    signals, limit = accounting_signals(traces, max_signal_ages(experiment)), threshold_of(experiment)
    share = None if limit is None else below_share(power_of(project, lineage), signals, experiment.sites, limit)
    lived = traces.filter(pl.col("time").dt.date().is_in(days_of(project, lineage[0].start, lineage[-1].end)))
    return model_card(
        CardInput(
            name=f"{experiment.name} {key}",
            lineage=lineage,
            sites=experiment.sites,
            ledger=own,
            synthetic=is_synthetic(lived),
            policy=experiment.policy.name,
            heldout_loss=stored_loss(project, key),
            below=None if limit is None or share is None else (limit, share),
            baselines=compared(project, lineage[-1].steps.end, traces, signals, totals(own)),
            kinds=_kinds(experiment, traces),
            license=experiment.card.license,
            datasets=experiment.card.datasets or _datasets(experiment.corpus.source),
            language=experiment.card.language or (["en"] if experiment.corpus.source == "embedded" else []),
        )
    )


def _kinds(experiment: Experiment, traces: pl.DataFrame) -> list[str]:
    """Of intensity, that the sites' regions are accounted by."""
    known = traces.drop_nulls("value").filter(pl.col("kind").is_in(ACCOUNTING_KINDS))
    regions = {site.region for site in experiment.sites}
    parts = known.filter(pl.col("region").is_in(list(regions))).partition_by("region")
    return sorted({accounting_kind(part["kind"].unique()) for part in parts})


def _datasets(source: str) -> list[str]:
    """Owner and name of a data set on the hub, as its cards link to it; none where the text is not from there."""
    if not source.startswith(_DATASETS):
        return []
    return ["/".join(source.removeprefix(_DATASETS).split("/")[:2])]
