"""Branches: training that leaves the main lineage at a committed checkpoint and never comes back to it.

`branches/<name>/` is a store of its own kind: it holds the checkpoint that the branch leaves from and the one that was
trained. The sensor, the ledger and the report do not see it.
"""

from collections.abc import Mapping
from datetime import datetime
from itertools import count

from curtail_pipeline.errors import SettingsError, StoreError
from curtail_pipeline.federation.orders import Plan, PlannedRound, Segment
from curtail_pipeline.federation.plan import plan_key, read_journal
from curtail_pipeline.federation.progress import SegmentProgress
from curtail_pipeline.stages.aside import Aside, aside, run_aside
from curtail_pipeline.stages.deal import closing_ledger, opening_ledger, shard_sizes
from curtail_pipeline.stages.optimiser_states import merged_states
from curtail_pipeline.stages.parents import parent_checkpoint
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.replay import realised_plan
from curtail_pipeline.stages.train import checkpoint_files
from curtail_pipeline.stages.wall_power import wall_time
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.commits import number
from curtail_pipeline.storage.manifest import Interval, Manifest, SiteLedger
from curtail_pipeline.storage.store import Store
from curtail_pipeline.times import utc_now
from curtail_pipeline.tokens.ranges import drop_prefix, take_prefix

BRANCHES = "branches"
TAKEN = "name"
"""Of the file by which a branch has its name."""


class Branch:
    """A trained branch: its checkpoint and where it is."""

    def __init__(self, name: str, checkpoints: Checkpoints, manifest: Manifest) -> None:
        self.name, self.checkpoints, self.manifest = name, checkpoints, manifest

    @property
    def address(self) -> str:
        return self.checkpoints.where(self.manifest.key)


def another_seed(project: Project, key: str, seed: int, on_progress: SegmentProgress) -> Branch:
    """The segment of a committed checkpoint with another seed for the order of its text.

    Raises:
        SettingsError: it is the seed that the checkpoint has.
        StoreError: the checkpoint or its parent is damaged, or nothing was trained to get it.
        FederationError: training failed.
    """
    manifest, plan, realised = realised_plan(project, key)
    if seed == plan.seed:
        raise SettingsError(f"{key} was trained with seed {seed}; give another one, or replay it")
    with aside(project.store) as place:
        begin = place.take_begin(manifest)
        again = begin.replay_of(plan, realised, place.identity)
        wanted = Plan.model_validate({**dict(again), "seed": seed, "stop_reason": f"branch with seed {seed}"})
        return _train(project, place, f"{key}-seed-{seed}", wanted, on_progress)


def extend(project: Project, key: str, rounds: int, on_progress: SegmentProgress) -> Branch:
    """So many more rounds like the last one of a committed checkpoint, from there, by the same members.

    Raises:
        SettingsError: the number of rounds is not positive.
        StoreError: the checkpoint is damaged, or nothing was trained to get it.
        FederationError: training failed.
    """
    if rounds < 1:
        raise SettingsError(f"rounds is {rounds}; extend a checkpoint by 1 round or more")
    manifest, plan, realised = realised_plan(project, key)
    ledger = opening_ledger(project, manifest)
    with aside(project.store) as place:
        begin = place.take_end(manifest)
        wanted = Plan(
            key=_next(key),
            parent=parent_checkpoint(project.store, manifest),
            members=plan.members,
            mode=plan.mode,
            first_step=manifest.steps.end,
            total_steps=plan.total_steps,
            seed=plan.seed,
            rounds=_more_rounds(project, manifest, _last_steps(realised), rounds),
            inner_state=begin.own,
            shared=begin.merged,
            residual=begin.residual,
            outer=plan.outer,
            exchange=plan.exchange,
            norm_bound=plan.norm_bound,
            norm_history=tuple(manifest.norm_history),
            step_size=plan.step_size,
            ledger={site: SiteLedger.model_validate(part) for site, part in ledger.to_json().items()},
            replay=place.identity,
            stop_reason=f"branch of {rounds} more rounds",
        )
        return _train(project, place, f"{key}-plus-{rounds}", wanted, on_progress)


def _last_steps(realised: Segment) -> Mapping[str, int]:
    """Of the last round that had any: one that only exchanges what is left of fragments has none."""
    return next(done.steps for done in reversed(realised.rounds) if any(done.steps.values()))


def _next(key: str) -> str:
    return f"ckpt-{number(key) + 1:06d}"


def _more_rounds(
    project: Project, manifest: Manifest, steps: Mapping[str, int], rounds: int
) -> tuple[PlannedRound, ...]:
    """Rounds of these steps on text that the lineage has not seen."""
    experiment = project.experiment
    per_step, totals = experiment.sequences_per_step, shard_sizes(project, tuple(steps))
    ledger = opening_ledger(project, manifest)
    rest = {
        site: ledger.lease(site, rounds * count * per_step, totals[site], experiment.corpus.exhausted, per_step)
        for site, count in steps.items()
    }
    planned = []
    for index in range(rounds):
        cut = {site: tuple(take_prefix(rest[site], count * per_step)) for site, count in steps.items()}
        rest = {site: drop_prefix(rest[site], count * per_step) for site, count in steps.items()}
        planned.append(PlannedRound(index=index, steps=dict(steps), lease=cut))
    return tuple(planned)


def _train(project: Project, place: Aside, name: str, plan: Plan, on_progress: SegmentProgress) -> Branch:
    began = utc_now()
    segment = run_aside(project, place, plan, on_progress)
    if not segment.steps:
        raise StoreError(f"the branch {name} trained no step ({segment.stop_reason}); nothing was stored")
    branch, name = _new_branch(project.store, name)
    parent = project.checkpoints.check(plan.parent.key)
    for file in (*parent.files, "manifest.json"):
        key = f"checkpoints/{parent.key}/{file}"
        project.store.copy(key, f"{BRANCHES}/{name}/{key}")
    checkpoints = Checkpoints(branch, project.experiment.training.sequence_length)
    manifest = _commit(project, checkpoints, name, place, plan, parent, segment, began)
    return Branch(name, checkpoints, manifest)


def _new_branch(store: Store, wanted: str) -> tuple[Store, str]:
    """The store of a branch that nothing else has: of this name, or with a number behind it."""
    for n in count(1):
        name = wanted if n == 1 else f"{wanted}-{n}"
        taken = store.list(f"{BRANCHES}/{name}")
        if not taken and store.create_bytes(f"{BRANCHES}/{name}/{TAKEN}", name.encode()):
            return store.under(f"{BRANCHES}/{name}"), name
    raise AssertionError("there is always another number")


def _commit(
    project: Project,
    checkpoints: Checkpoints,
    name: str,
    place: Aside,
    plan: Plan,
    parent: Manifest,
    segment: Segment,
    began: datetime,
) -> Manifest:
    store, branch, files = project.store, checkpoints.store, dict[str, str]()
    start, end, intervals = wall_time(project, plan.members, read_journal(store, place.folder), began)
    for file, source in checkpoint_files(parent, place.folder, segment).items():
        files[file] = f"scratch/{file}"
        store.copy(source, f"{BRANCHES}/{name}/{files[file]}")
    manifest = checkpoints.commit(
        plan.key,
        files,
        {
            "parent": parent.key,
            "mode": plan.mode,
            "members": plan.members,
            "stop_reason": segment.stop_reason,
            "attempt": 0,
            "experiment_sha256": project.home.record().sha256,
            "seed": store.read_record(plan_key(place.folder), Plan).seed,
            "start": start,
            "end": end,
            "steps": {"begin": parent.steps.end, "end": parent.steps.end + segment.steps},
            "tokens": {"segment": segment.tokens},
            "rounds": len(segment.rounds),
            "sites": segment.sites,
            "ledger": closing_ledger(plan, {site: done.consumed for site, done in segment.sites.items()}, parent),
            "intervals": [Interval(**vars(interval)) for interval in intervals],
            "norm_history": segment.norm_history,
            "inner_state": merged_states(plan, segment),
        },
        generation=0,
    )
    branch.delete("scratch")
    return manifest
