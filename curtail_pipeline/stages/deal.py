"""Which part of the text is whose: dealt once to the sites, and moved between them where an experiment rebalances."""

from collections.abc import Iterable, Mapping

from filelock import FileLock

from curtail_pipeline.corpus.batches import ShardReader
from curtail_pipeline.corpus.build import stored_manifest
from curtail_pipeline.corpus.dealing import Dealing, freeze_dealing, frozen_shares
from curtail_pipeline.federation.orders import Plan
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.records import Message
from curtail_pipeline.storage.tables import trace_key
from curtail_pipeline.tokens.balance import balance, fresh_first
from curtail_pipeline.tokens.ledger import Ledger, Report, SiteRanges
from curtail_pipeline.tokens.ranges import Ranges

LEAST_SHARE = 0.01
"""Of the expected hours of all sites: what a site that is never curtailed in the trace counts."""
BASIS_KEY = "corpus/shares.json"
SHOWN = 5
"""Missing days that are named; the rest is counted."""


class SharesBasis(Message):
    """`corpus/shares.json`: what traces there were when shares by expected hours were frozen."""

    cells: int
    """Days times regions of sites that the experiment had until then."""
    missing: tuple[str, ...]
    """Those of them without a trace, e.g. `SPP_TX 2026-03-22`."""


def ensure_dealt(project: Project) -> Dealing:
    """Deal the corpus to the sites if it is not dealt; the shares of the first time stay.

    Raises:
        CorpusError: the tokenizer is missing, or the corpus was dealt with other settings.
        TraceError: shares are by expected hours and no trace has been ingested.
    """
    lock = project.store.here("corpus/.dealing.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):  # sites' shards are built in runs of their own; they must find the same shares
        shares = frozen_shares(project.store)
        if shares is None:
            shares = initial_shares(project)
            if shares_need_traces(project.experiment):
                project.store.write_record(BASIS_KEY, _basis(project))
        return freeze_dealing(project.experiment.corpus, project.store, shares)


def shares_need_traces(experiment: Experiment) -> bool:
    """Whether the shares are by the hours that a simulation on the traces expects."""
    return experiment.corpus.shares == "expected" and not any(site.share for site in experiment.sites)


def _basis(project: Project) -> SharesBasis:
    cells = [(day, region) for day in project.days for region in {site.region for site in project.experiment.sites}]
    missing = [
        f"{region} {day}" for day, region in cells if not project.store.exists(trace_key(day.isoformat(), region))
    ]
    return SharesBasis(cells=len(cells), missing=tuple(sorted(missing)))


def shares_gap(project: Project) -> str | None:
    """What the traces lacked when the shares were frozen on them; None where nothing, or where shares need none."""
    if not project.store.exists(BASIS_KEY):
        return None
    basis = project.store.read_record(BASIS_KEY, SharesBasis)
    if not basis.missing:
        return None
    more = ", ..." if len(basis.missing) > SHOWN else ""
    return (
        f"the shares were frozen on traces that lacked {len(basis.missing)} of {basis.cells} regions' days "
        f"({', '.join(basis.missing[:SHOWN])}{more}), where no site was expected to train. Ingest them and use another "
        "experiment name to deal anew, or give every site a `share`"
    )


def initial_shares(project: Project) -> dict[str, float]:
    """Each site's share of the corpus, in any unit: what the sites declare (1 where one does not), or else as
    `corpus.shares` says.

    Raises:
        TraceError: shares are by expected hours and no trace has been ingested.
    """
    sites = project.experiment.sites
    if not shares_need_traces(project.experiment):
        return {site.name: site.share or 1.0 for site in sites}
    hours = expected_hours(project)
    least = LEAST_SHARE * sum(hours.values())
    return {site.name: max(hours[site.name], least) or 1.0 for site in sites}


def expected_hours(project: Project) -> dict[str, float]:
    """Hours that each site would train by the experiment's policy on the ingested traces, to their end.

    The clock's end is left out: it may be moved later on, and is no part of an experiment's identity.

    Raises:
        TraceError: no trace has been ingested.
    """
    from curtail_pipeline.simulation.compare import simulate_run

    experiment = project.experiment
    clock = experiment.clock.model_copy(update={"end": None})
    found = simulate_run(experiment.model_copy(update={"clock": clock}), project.traces(project.days))
    return found.account.training_h


def opening_ledger(project: Project, parent: Manifest) -> Ledger:
    """What a segment leases from: its parent's ledger, with untouched text moved by the shares if `corpus.rebalance`.

    Sites that were added after the corpus was dealt are given text of the others, each as much as an average one has.

    Raises:
        CorpusError: a site's shards are not built.
    """
    ledger, experiment = parent.token_ledger(), project.experiment
    shares = frozen_shares(project.store)
    if shares is None:
        return ledger
    added = _added_sites(experiment, shares)
    if not experiment.corpus.rebalance and not added:
        return ledger
    weights = shares | dict.fromkeys(added, sum(shares.values()) / len(shares))
    receivers = None if experiment.corpus.rebalance else added
    sizes = shard_sizes(project, weights)
    return balance(ledger, sizes, weights, experiment.sequences_per_step, receivers=receivers)


def _added_sites(experiment: Experiment, shares: Mapping[str, float]) -> list[str]:
    return [site.name for site in experiment.sites if site.name not in shares]


def with_fresh_text(project: Project, ledger: Ledger, steps: Mapping[str, int]) -> Ledger:
    """The ledger with text moved to members that would repeat theirs first, as `corpus.fresh_first` says.

    Args:
        steps: of each member in the segment that is planned.
    """
    corpus, per_step = project.experiment.corpus, project.experiment.sequences_per_step
    if not corpus.fresh_first or corpus.exhausted == "done":
        return ledger
    built = [site for site in frozen_shares(project.store) or steps if stored_manifest(project.store, site)]
    return fresh_first(ledger, shard_sizes(project, built), {site: count * per_step for site, count in steps.items()})


def shard_sizes(project: Project, sites: Iterable[str]) -> dict[str, int]:
    """Sequences in each site's shard set; 0 for sites that were added after the corpus was dealt.

    Raises:
        CorpusError: a site's shards are not built.
    """
    length, shares = project.experiment.training.sequence_length, frozen_shares(project.store)
    added = _added_sites(project.experiment, shares) if shares is not None else []
    return {site: 0 if site in added else ShardReader(project.store, site, length).n_sequences for site in sites}


def closing_ledger(plan: Plan, consumed: Mapping[str, Ranges], parent: Manifest) -> dict[str, SiteRanges]:
    """The ledger to commit: that of the segment's plan and what of its leases the sites consumed.

    Raises:
        LedgerError: a site consumed something else than the beginning of its lease.
    """
    parts = [plan.open.lease] if plan.open else [planned.lease for planned in plan.rounds or ()]
    reports: dict[str, Report] = {
        site: {"lease": [item for part in parts for item in part.get(site, ())], "consumed": consumed[site]}
        for site in consumed
    }
    opening = Ledger.from_json({site: part.as_ranges() for site, part in plan.ledger.items()})
    return opening.commit(reports).to_json([*parent.ledger, *consumed])
