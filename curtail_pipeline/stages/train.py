"""One segment: from the sensor's request to a committed checkpoint.

A segment is planned from its request and its parent alone; nothing here reads "latest". Headless, the plan holds every
round's steps, computed from the trace; with a replayed or live clock it is open-ended and membership ends it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from curtail_pipeline.corpus.build import any_manifest
from curtail_pipeline.emissions.grams import PowerInterval
from curtail_pipeline.errors import FederationError, SitesDown, StoreError
from curtail_pipeline.federation.exchange import exchange_of
from curtail_pipeline.federation.grace import Quorum
from curtail_pipeline.federation.orders import (
    OpenRounds,
    OuterSettings,
    Plan,
    PlannedRound,
    Segment,
    SiteTerms,
    StepSize,
)
from curtail_pipeline.federation.plan import journal_key, plan_key, read_journal, segment_key
from curtail_pipeline.federation.progress import SegmentEnded, SegmentPlanned, SegmentProgress
from curtail_pipeline.federation.segment_state import DELTA, OUTER
from curtail_pipeline.flower.standing import connect
from curtail_pipeline.flower.submit import submit_and_follow
from curtail_pipeline.scheduling.absence import ABSENCES_KEY
from curtail_pipeline.scheduling.decide import decide
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY, Desired, SegmentRequest, request_key
from curtail_pipeline.scheduling.timing import SegmentPlan, idle_intervals, plan_segment
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.stages.attempts import place_of
from curtail_pipeline.stages.deal import closing_ledger, opening_ledger, shard_sizes, with_fresh_text
from curtail_pipeline.stages.optimiser_states import (
    inner_states,
    keep_merged,
    merged_of,
    merged_states,
    prune_states,
    residuals,
)
from curtail_pipeline.stages.parents import parent_checkpoint
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.tick import absences
from curtail_pipeline.stages.wall_power import clock_of_project, other_attempts, wall_time
from curtail_pipeline.storage.checkpoints import FIRST_KEY, MODEL_FILES, TOKENIZER_FILES, WEIGHTS_FILE
from curtail_pipeline.storage.manifest import Interval, Manifest, SiteLedger
from curtail_pipeline.storage.package_versions import versions
from curtail_pipeline.storage.store import CorruptObject
from curtail_pipeline.times import utc_now
from curtail_pipeline.tokens.ledger import Ledger
from curtail_pipeline.tokens.ranges import Range, drop_prefix, take_prefix


@dataclass(frozen=True)
class Prospect:
    """What is known when a segment starts: the request, its parent, and the view that everything else follows from."""

    request: SegmentRequest
    parent: Manifest
    view: View
    """Of the segment's start and the pause before it."""
    scheduled: SegmentPlan | None
    """Every round, headless; None where membership ends the segment."""


def read_request(project: Project, key: str) -> SegmentRequest:
    """The request for this checkpoint.

    Raises:
        StoreError: the sensor has never asked for it.
        MessageError: it was written by another version.
    """
    if not project.store.exists(request_key(key)):
        last = project.checkpoints.last() or "none"
        raise StoreError(
            f"{key} was never requested: the last committed checkpoint is {last}, and the membership sensor asks for "
            "the next one when a site should train; turn it on, or materialise a committed key to replay it"
        )
    return project.store.read_record(request_key(key), SegmentRequest)


@dataclass(frozen=True)
class NoStep:
    """A segment that ended before its first step: there is nothing to commit, and nothing failed."""

    key: str
    reason: str


def train_segment(project: Project, request: SegmentRequest, on_progress: SegmentProgress) -> Manifest | NoStep:
    """Plan, train and commit one segment. Safe to call again after any failure: what is committed stays.

    Raises:
        FederationError: the Flower run failed; the next attempt starts from the same parent.
        StoreError: another writer has committed the key, or the parent is damaged.
    """
    checkpoints, store = project.checkpoints, project.store
    if not checkpoints.exists(request.key):
        checkpoints.claim(request.key, request.generation, request.attempt)
    if checkpoints.exists(request.key):  # there already, or a commit that was cut off
        return checkpoints.manifest(request.key)
    prospect = _prospect(project, request)
    on_progress(_planned(project, prospect))
    scratch = place_of(store, _plan(project, prospect))
    began = utc_now()
    try:
        with connect(project.home, project.experiment) as federation:
            segment = submit_and_follow(federation, plan_key(scratch), store, on_progress=on_progress)
    except SitesDown as error:
        _note_absences(project, error.sites, ())
        raise
    except FederationError:
        journal = read_journal(store, scratch)
        _note_absences(project, journal[-1].done.lost if journal else {}, ())
        raise
    _note_absences(project, segment.lost, [site for site, done in segment.sites.items() if done.steps])
    if not segment.steps:
        # its rounds stay for the time they took; with an outcome the next attempt would take them for its own
        store.delete(segment_key(scratch) if segment.rounds else scratch)
        return NoStep(request.key, segment.stop_reason)
    manifest = _commit(project, prospect, segment, scratch, began)
    steps = manifest.steps.end - manifest.steps.begin
    on_progress(SegmentEnded(manifest.key, manifest.stop_reason, manifest.rounds, steps, manifest.tokens.segment))
    store.delete(f"scratch/{request.key}")
    prune_states(project)
    return manifest


def _note_absences(project: Project, lost: Mapping[str, str], delivered: Collection[str]) -> None:
    """Remember who was lost, for the next decision, and who is back."""
    before = absences(project)
    after = before.after(lost, delivered, utc_now())
    if after != before:
        project.store.write_record(ABSENCES_KEY, after)


def _planned(project: Project, prospect: Prospect) -> SegmentPlanned:
    request, store, why = prospect.request, project.store, dict[str, str]()
    if store.exists(MEMBERSHIP_KEY):
        desired = store.read_record(MEMBERSHIP_KEY, Desired)
        why = desired.reasons if desired.generation == request.generation else {}
    return SegmentPlanned(
        key=request.key,
        attempt=request.attempt,
        mode=request.mode,
        parent=request.parent,
        members={site: why.get(site, "") for site in request.members},
        reason=request.reason,
        rounds=len(prospect.scheduled.rounds) if prospect.scheduled else None,
    )


def _prospect(project: Project, request: SegmentRequest) -> Prospect:
    parent = _whole_parent(project, request.parent)
    view = project.view(request.start, since=parent.end).without(request.away)
    scheduled = None
    if project.clock_mode == "headless":
        job = project.job(parent, request.previous)
        decision = decide(view, request.start, job)
        scheduled = plan_segment(view, project.experiment, request.start, job, decision)
    return Prospect(request, parent, view, scheduled)


def _whole_parent(project: Project, key: str) -> Manifest:
    """The parent, checked. A damaged one that nothing was made from goes aside, and its segment is trained again.

    Raises:
        StoreError: it is damaged, and the message says what goes on; or it cannot be read now, and stays where it is.
    """
    try:
        return project.checkpoints.check(key)
    except CorruptObject as error:
        if key != project.checkpoints.last() or key == FIRST_KEY:
            raise
        before = project.checkpoints.manifest(key).parent
        aside = project.checkpoints.withdraw(key)
        raise StoreError(
            f"{str(error).split(';')[0]}. It was set aside in {aside}; training goes on from {before} and makes {key} "
            "again"
        ) from error


def _plan(project: Project, prospect: Prospect) -> Plan:
    experiment, request, parent = project.experiment, prospect.request, prospect.parent
    ledger = with_fresh_text(project, opening_ledger(project, parent), _expected_steps(project, prospect))
    leases = _leases(project, prospect, ledger)
    scheduled = prospect.scheduled
    return Plan(
        key=request.key,
        attempt=request.attempt,
        generation=request.generation,
        parent=parent_checkpoint(project.store, parent),
        members=request.members,
        mode="local" if request.mode == "local" else "federated",
        first_step=parent.steps.end,
        total_steps=experiment.job.steps,
        seed=experiment.seed,
        rounds=_planned_rounds(scheduled, leases, experiment.sequences_per_step) if scheduled else None,
        open=None if scheduled else _open_rounds(project, prospect.view, request, leases),
        inner_state=inner_states(project, parent, request.members),
        shared=merged_of(parent) if experiment.rounds.inner_state == "merged" else None,
        residual=residuals(project, parent, request.members),
        outer=OuterSettings(lr=experiment.rounds.outer_lr, momentum=experiment.rounds.outer_momentum),
        exchange=exchange_of(experiment.rounds, linked=bool(experiment.federation.linked)),
        quorum=Quorum(members=experiment.rounds.quorum, grace=experiment.rounds.grace),
        norm_bound=experiment.rounds.norm_bound,
        norm_history=tuple(parent.norm_history),
        linked=tuple(site for site in request.members if site in experiment.federation.linked),
        step_size=StepSize(
            sequences=experiment.sequences_per_step,
            tokens=experiment.training.total_batch_tokens,
            grad_clip=experiment.training.grad_clip,
        ),
        terms=_terms(project, request.members),
        heldout_gate=experiment.federation.heldout_gate,
        ledger={site: SiteLedger.model_validate(part) for site, part in ledger.to_json().items()},
        stop_reason=scheduled.stop_reason if scheduled else "",
        written=None if scheduled else utc_now(),
    )


def _terms(project: Project, members: Sequence[str]) -> SiteTerms:
    """What the members' software and text have to be: this machine's, and what was dealt."""
    settings, found = project.experiment.federation, versions()
    made_with = {"torch": found["torch"]} if "torch" in found else {}
    manifest = any_manifest(project.store, members[0])
    if manifest is not None:
        made_with |= {"corpus": manifest.dealing_sha256, "tokenizer": manifest.tokenizer_sha256}
    return SiteTerms(made_with=made_with, differing=settings.differing_site, lost_state=settings.lost_state)


def _expected_steps(project: Project, prospect: Prospect) -> dict[str, int]:
    """Steps of each member in the segment: the planned ones, or those of its longest duration."""
    experiment, scheduled, members = project.experiment, prospect.scheduled, prospect.request.members
    if scheduled is not None:
        return {site: sum(r.steps.get(site, 0) for r in scheduled.rounds) for site in members}
    left, rounds = experiment.job.steps - prospect.parent.steps.end, prospect.view.experiment.rounds
    longest = rounds.max_rounds * rounds.length_s
    return {site: min(left, math.ceil(longest * experiment.site(site).steps_per_s)) for site in members}


def _leases(project: Project, prospect: Prospect, ledger: Ledger) -> dict[str, list[Range]]:
    """Per member the sequences that it may train on: those of its planned steps, or of all that are left."""
    experiment, members, scheduled = project.experiment, prospect.request.members, prospect.scheduled
    totals = shard_sizes(project, members)
    if scheduled is None:
        steps = dict.fromkeys(members, experiment.job.steps - prospect.parent.steps.end)
    else:
        steps = {site: sum(r.steps.get(site, 0) for r in scheduled.rounds) for site in members}
    per_step = experiment.sequences_per_step
    return {
        site: ledger.lease(site, count * per_step, totals[site], experiment.corpus.exhausted, per_step)
        for site, count in steps.items()
    }


def _open_rounds(
    project: Project, view: View, request: SegmentRequest, leases: Mapping[str, list[Range]]
) -> OpenRounds:
    rounds = view.experiment.rounds
    speed = project.experiment.replay.speed if project.clock_mode == "replay" else 1.0
    return OpenRounds(
        round_s=rounds.length_s / speed,
        max_rounds=rounds.max_rounds,
        lease={site: tuple(lease) for site, lease in leases.items()},
        generation=request.generation,
    )


def _planned_rounds(
    scheduled: SegmentPlan, leases: Mapping[str, list[Range]], per_step: int
) -> tuple[PlannedRound, ...]:
    rest, rounds = dict(leases), []
    for planned in scheduled.rounds:
        cut = {site: tuple(take_prefix(rest[site], count * per_step)) for site, count in planned.steps.items()}
        rest |= {site: drop_prefix(rest[site], count * per_step) for site, count in planned.steps.items()}
        rounds.append(
            PlannedRound(
                index=planned.index,
                start=planned.start,
                end=planned.end,
                steps=dict(planned.steps),
                stops=dict(planned.stops),
                lease=cut,
            )
        )
    return tuple(rounds)


def _commit(project: Project, prospect: Prospect, segment: Segment, scratch: str, began: datetime) -> Manifest:
    store, request, parent = project.store, prospect.request, prospect.parent
    plan = store.read_record(plan_key(scratch), Plan)
    if prospect.scheduled:
        start, end, intervals = _virtual_time(prospect.scheduled, segment)
        intervals = [*_pause_power(project, prospect, start), *intervals]
    else:
        start, end, intervals = wall_time(
            project,
            plan.members,
            read_journal(store, scratch),
            min(began, plan.written or began),
            clock_of_project(project),
            since=parent.end,
            others=other_attempts(project, request.key, but=scratch),
        )
    steps = sum(site.steps for site in segment.sites.values())
    keep_merged(store, plan, segment)
    return project.checkpoints.commit(
        request.key,
        checkpoint_files(parent, scratch, segment),
        {
            "parent": parent.key,
            "mode": plan.mode,
            "members": plan.members,
            "stop_reason": segment.stop_reason,
            "attempt": request.attempt,
            "experiment_sha256": project.home.record().sha256,
            "seed": project.experiment.seed,
            "start": start,
            "end": end,
            "steps": {"begin": parent.steps.end, "end": parent.steps.end + steps},
            "tokens": {"segment": steps * project.experiment.training.total_batch_tokens},
            "rounds": len(segment.rounds),
            "sites": segment.sites,
            "ledger": closing_ledger(plan, {site: done.consumed for site, done in segment.sites.items()}, parent),
            "intervals": [Interval(**vars(interval)) for interval in intervals],
            "norm_history": segment.norm_history,
            "inner_state": merged_states(plan, segment),
        },
        generation=request.generation,
    )


def checkpoint_files(parent: Manifest, scratch: str, segment: Segment) -> dict[str, str]:
    """Store keys of what a checkpoint is made of: what the model was and is, and how it came to be."""
    files = {
        name: f"checkpoints/{parent.key}/{name}" for name in (*MODEL_FILES, *TOKENIZER_FILES) if name in parent.files
    }
    files |= {key.rsplit("/", 1)[1]: key for key in (plan_key(scratch), segment_key(scratch))}
    files |= {"rounds.jsonl": journal_key(scratch), WEIGHTS_FILE: segment.weights.key}
    if segment.outer is not None:
        files[OUTER] = segment.outer.key
    if segment.delta is not None:
        files[DELTA] = segment.delta.key
    return files


def _pause_power(project: Project, prospect: Prospect, start: datetime) -> tuple[PowerInterval, ...]:
    """Power of sites that were warm, starting or held at idle power between the parent's end and this segment."""
    parent = prospect.parent
    job = project.job(parent, prospect.request.before_pause)
    return idle_intervals(prospect.view, project.experiment, parent.end, start, job)


def _virtual_time(scheduled: SegmentPlan, segment: Segment) -> tuple[datetime, datetime, list[PowerInterval]]:
    """The planned times, cut at the last round that was realised; an exchange of what is left is none of them."""
    done = sum(part.index < len(scheduled.rounds) for part in segment.rounds)
    end = scheduled.end if done == len(scheduled.rounds) else scheduled.rounds[done - 1].end
    cut = [PowerInterval(i.site, i.state, i.start, min(i.end, end), i.kw) for i in scheduled.intervals if i.start < end]
    return scheduled.start, end, cut
