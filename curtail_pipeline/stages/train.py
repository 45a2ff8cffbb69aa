"""One segment: from the sensor's request to a committed checkpoint, and from a committed checkpoint again.

A segment is planned from its request and its parent alone; nothing here reads "latest". Headless, the plan holds every
round's steps, computed from the trace; with a replayed or live clock it is open-ended and membership ends it.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from curtail_pipeline.corpus.batches import ShardReader
from curtail_pipeline.emissions.grams import PowerInterval
from curtail_pipeline.errors import StoreError
from curtail_pipeline.federation.plan import replay_rounds
from curtail_pipeline.flower.standing import connect
from curtail_pipeline.flower.submit import submit_and_follow
from curtail_pipeline.scheduling.decide import decide
from curtail_pipeline.scheduling.reconcile import SegmentRequest, request_key
from curtail_pipeline.scheduling.timing import SegmentPlan, idle_intervals, plan_segment
from curtail_pipeline.settings.sites import PowerState, Site, power_kw
from curtail_pipeline.stages.deal import closing_ledger, opening_ledger
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.clock import ReplayClock
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.times import iso, parse_utc, seconds, utc_now
from curtail_pipeline.tokens.ranges import drop_prefix, take_prefix

Progress = Callable[[Mapping[str, Any]], None]

MODEL_FILES = ("config.json", "generation_config.json")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


@dataclass(frozen=True)
class Replayed:
    """What repeating a committed checkpoint gave."""

    manifest: Manifest
    committed_sha256: str
    replayed_sha256: str
    fresh_states: tuple[str, ...]
    """Sites whose inner state at the segment's start was pruned, so that they started fresh."""

    @property
    def identical(self) -> bool:
        return self.committed_sha256 == self.replayed_sha256


def read_request(project: Project, key: str) -> SegmentRequest:
    """The request for this checkpoint.

    Raises:
        StoreError: the sensor has never asked for it.
    """
    if not project.store.exists(request_key(key)):
        last = project.checkpoints.last() or "none"
        raise StoreError(
            f"{key} was never requested: the last committed checkpoint is {last}, and the membership sensor asks for "
            "the next one when a site should train; turn it on, or materialise a committed key to replay it"
        )
    return SegmentRequest.from_json(project.store.read_json(request_key(key)))


def train_segment(project: Project, request: SegmentRequest, on_progress: Progress) -> Manifest:
    """Plan, train and commit one segment. Safe to call again after any failure: what is committed stays.

    Raises:
        FederationError: the Flower run failed; the next attempt starts from the same parent.
        StoreError: another writer has committed the key, or the parent is damaged.
    """
    checkpoints = project.checkpoints
    if checkpoints.exists(request.key):
        return checkpoints.manifest(request.key)
    checkpoints.claim(request.key, request.generation, request.attempt)
    parent = checkpoints.verify(request.parent)
    scratch = f"scratch/{request.key}/{request.attempt}"
    plan_key = f"{scratch}/plan.json"
    scheduled = _scheduled(project, request, parent) if project.clock_mode == "headless" else None
    if not project.store.exists(plan_key):
        project.store.write_json(plan_key, _plan(project, request, parent, scheduled))
    began = utc_now()
    segment = _run(project, plan_key, on_progress)
    manifest = _commit(project, request, parent, scheduled, segment, scratch, began)
    project.store.delete(f"scratch/{request.key}")
    _prune_inner_states(project)
    return manifest


def replay_segment(project: Project, key: str, on_progress: Progress) -> Replayed:
    """Repeat a committed segment from its parent in scratch and compare; the committed folder is never touched.

    Raises:
        StoreError: the checkpoint or its parent is damaged, or it is the initialised model.
    """
    manifest = project.checkpoints.verify(key)
    if manifest.parent is None:
        raise StoreError(f"{key} is the initialised model and has no segment to replay")
    project.checkpoints.verify(manifest.parent)
    folder = project.checkpoints.folder(key)
    plan = json.loads((folder / "plan.json").read_text())
    realised = json.loads((folder / "segment.json").read_text())
    states = {site: result.inner_state.begin for site, result in manifest.sites.items()}
    pruned = tuple(site for site, state in states.items() if not _has_state(project, site, state))
    attempt = next(n for n in itertools.count(1) if not project.store.exists(f"scratch/{key}/replay-{n}"))
    plan_key = f"scratch/{key}/replay-{attempt}/plan.json"
    project.store.write_json(
        plan_key,
        {
            **plan,
            "rounds": replay_rounds(realised),
            "open": None,
            "replay": True,
            "inner_state": {site: "fresh" if site in pruned else state for site, state in states.items()},
        },
    )
    segment = _run(project, plan_key, on_progress)
    replayed = file_sha256(project.store.path(segment["weights"]["key"]))
    project.store.delete(str(Path(plan_key).parent))
    return Replayed(manifest, manifest.files["model.safetensors"].sha256, replayed, pruned)


def _run(project: Project, plan_key: str, on_progress: Progress) -> dict[str, Any]:
    with connect(project.home.root, project.experiment) as federation:
        return submit_and_follow(federation, plan_key, project.store, on_progress=on_progress)


def _scheduled(project: Project, request: SegmentRequest, parent: Manifest) -> SegmentPlan:
    view = project.view(request.start)
    job = project.job(parent, request.previous)
    return plan_segment(view, project.experiment, request.start, job, decide(view, request.start, job))


def _plan(project: Project, request: SegmentRequest, parent: Manifest, scheduled: SegmentPlan | None) -> dict[str, Any]:
    experiment = project.experiment
    totals = {
        site: ShardReader(project.store, site, experiment.training.sequence_length).n_sequences
        for site in request.members
    }
    ledger = opening_ledger(project, parent)
    per_step = experiment.sequences_per_step
    if scheduled is None:
        remaining = experiment.job.steps - parent.steps.end
        steps = dict.fromkeys(request.members, remaining)
    else:
        steps = {site: sum(r.steps.get(site, 0) for r in scheduled.rounds) for site in request.members}
    leases = {
        site: ledger.lease(site, count * per_step, totals[site], experiment.corpus.exhausted, per_step)
        for site, count in steps.items()
    }
    open_rounds = rounds = None
    if scheduled is None:
        open_rounds = {
            "round_s": experiment.rounds.round_s / _speed(project),
            "max_rounds": experiment.rounds.max_rounds,
            "lease": leases,
            "generation": request.generation,
        }
    else:
        rest, rounds = dict(leases), []
        for planned in scheduled.rounds:
            cut = {site: take_prefix(rest[site], count * per_step) for site, count in planned.steps.items()}
            rest |= {site: drop_prefix(rest[site], count * per_step) for site, count in planned.steps.items()}
            rounds.append(
                {
                    "index": planned.index,
                    "start": iso(planned.start),
                    "end": iso(planned.end),
                    "steps": dict(planned.steps),
                    "stops": dict(planned.stops),
                    "lease": cut,
                }
            )
    return {
        "key": request.key,
        "attempt": request.attempt,
        "generation": request.generation,
        "parent": {
            "key": parent.key,
            "weights": f"checkpoints/{parent.key}/model.safetensors",
            "sha256": parent.files["model.safetensors"].sha256,
            "outer": f"checkpoints/{parent.key}/outer.safetensors" if "outer.safetensors" in parent.files else None,
            "config": f"checkpoints/{parent.key}/config.json",
        },
        "members": list(request.members),
        "mode": request.mode,
        "first_step": parent.steps.end,
        "total_steps": experiment.job.steps,
        "seed": experiment.seed,
        "experiment_uri": "experiment.json",
        "rounds": rounds,
        "open": open_rounds,
        "inner_state": _inner_states(project, parent, request.members),
        "outer": {"lr": experiment.rounds.outer_lr, "momentum": experiment.rounds.outer_momentum},
        "norm_bound": experiment.rounds.norm_bound,
        "norm_history": parent.norm_history,
        "ledger": ledger.to_json(),
        "stop_reason": scheduled.stop_reason if scheduled else "",
        "replay": False,
    }


def _speed(project: Project) -> float:
    return project.experiment.replay.speed if project.clock_mode == "replay" else 1.0


def _inner_states(project: Project, parent: Manifest, members: tuple[str, ...]) -> dict[str, str]:
    """Per member, the inner optimiser state it last left in this lineage."""
    found: dict[str, str] = {}
    manifest: Manifest | None = parent
    while manifest is not None and len(found) < len(members):
        for site in members:
            if site not in found and site in manifest.sites:
                found[site] = manifest.sites[site].inner_state.end
        manifest = project.checkpoints.manifest(manifest.parent) if manifest.parent else None
    return {site: found.get(site, "fresh") for site in members}


def _state_key(site: str, state: str) -> str:
    return f"inner_state/{site}/{state.removeprefix('sha256:')}.safetensors"


def _has_state(project: Project, site: str, state: str) -> bool:
    return state == "fresh" or project.store.exists(_state_key(site, state))


def _prune_inner_states(project: Project) -> None:
    """Keep the newest snapshots of each site that checkpoints name, as many as the setting says."""
    keep = project.experiment.training.keep_inner_states
    if keep is None:
        return
    used: dict[str, list[str]] = {}
    for key in reversed(project.checkpoints.keys()):
        for site, result in project.checkpoints.manifest(key).sites.items():
            for state in (result.inner_state.end, result.inner_state.begin):
                if state != "fresh" and state not in used.setdefault(site, []):
                    used[site].append(state)
    for site in project.store.list("inner_state"):
        kept = {Path(_state_key(site, state)).name for state in used.get(site, [])[:keep]}
        for name in project.store.list(f"inner_state/{site}"):
            if name not in kept:
                project.store.delete(f"inner_state/{site}/{name}")


def _commit(
    project: Project,
    request: SegmentRequest,
    parent: Manifest,
    scheduled: SegmentPlan | None,
    segment: Mapping[str, Any],
    scratch: str,
    began: datetime,
) -> Manifest:
    store, folder = project.store, project.checkpoints.folder(parent.key)
    if scheduled is not None:
        start, end, intervals = _virtual_time(project, parent, scheduled, segment)
    else:
        start, end, intervals = _wall_time(
            project, request, parent, segment, began, store.path(f"{scratch}/rounds.jsonl")
        )
    sequence = project.experiment.training.sequence_length
    sites = {
        site: {
            "steps": done["steps"],
            "tokens": done["tokens"],
            "consumed": done["consumed"],
            "inner_state": done["inner_state"],
        }
        for site, done in segment["sites"].items()
    }
    files = {name: folder / name for name in (*MODEL_FILES, *TOKENIZER_FILES) if (folder / name).exists()}
    files |= {
        "model.safetensors": store.path(segment["weights"]["key"]),
        "plan.json": store.path(f"{scratch}/plan.json"),
        "rounds.jsonl": store.path(f"{scratch}/rounds.jsonl"),
        "segment.json": store.path(f"{scratch}/segment.json"),
    }
    if segment.get("outer"):
        files["outer.safetensors"] = store.path(segment["outer"]["key"])
    steps = sum(site["steps"] for site in sites.values())
    return project.checkpoints.commit(
        request.key,
        files,
        {
            "parent": parent.key,
            "mode": request.mode,
            "members": list(request.members),
            "stop_reason": segment["stop_reason"],
            "attempt": request.attempt,
            "experiment_sha256": project.home.record()["sha256"],
            "seed": project.experiment.seed,
            "start": start,
            "end": end,
            "steps": {"begin": parent.steps.end, "end": parent.steps.end + steps},
            "tokens": {"segment": steps * project.experiment.sequences_per_step * sequence},
            "rounds": len(segment["rounds"]),
            "sites": sites,
            "ledger": closing_ledger(
                store.read_json(f"{scratch}/plan.json"),
                {name: site["consumed"] for name, site in sites.items()},
                parent,
            ),
            "intervals": [_interval_json(interval) for interval in intervals],
            "norm_history": segment["norm_history"],
        },
        generation=request.generation,
    )


def _pause_power(project: Project, parent: Manifest, start: datetime) -> tuple[PowerInterval, ...]:
    """Power of sites that were warm or starting between the parent's end and this segment."""
    view = project.view(start, since=parent.end)
    return idle_intervals(view, project.experiment, parent.end, start, project.job(parent, {}))


def _virtual_time(
    project: Project, parent: Manifest, scheduled: SegmentPlan, segment: Mapping[str, Any]
) -> tuple[datetime, datetime, list[PowerInterval]]:
    """The planned times, cut at the last round that was realised; the pause before the segment counts to it."""
    done = len(segment["rounds"])
    end = scheduled.end if done == len(scheduled.rounds) else scheduled.rounds[done - 1].end
    cut = [PowerInterval(i.site, i.state, i.start, min(i.end, end), i.kw) for i in scheduled.intervals if i.start < end]
    return scheduled.start, end, [*_pause_power(project, parent, scheduled.start), *cut]


def _wall_time(
    project: Project,
    request: SegmentRequest,
    parent: Manifest,
    segment: Mapping[str, Any],
    began: datetime,
    journal: Path,
) -> tuple[datetime, datetime, list[PowerInterval]]:
    """In the clock's time: a site trains from a round's start for the seconds its trainer reports, and idles else."""
    clock = project.clock
    to_clock = clock.to_virtual if isinstance(clock, ReplayClock) else (lambda wall: wall)
    ended = to_clock(utc_now())
    reported = [json.loads(line)["results"] for line in journal.read_text().splitlines()]
    intervals: list[PowerInterval] = []
    for name in request.members:
        site = project.experiment.site(name)
        cursor = to_clock(began)

        def until(stamp: datetime, state: PowerState, site: Site = site) -> None:
            nonlocal cursor
            if stamp > cursor:
                intervals.append(PowerInterval(site.name, state, cursor, stamp, power_kw(site, state)))
                cursor = stamp

        for done, results in zip(segment["rounds"], reported, strict=True):
            if name in results:
                first = parse_utc(done["start"])
                until(to_clock(first), "idle")
                until(to_clock(first + seconds(results[name]["seconds"])), "training")
        until(ended, "idle")
    start = to_clock(began)
    return start, ended, [*_pause_power(project, parent, start), *intervals]


def _interval_json(interval: PowerInterval) -> dict[str, Any]:
    return {
        "site": interval.site,
        "state": interval.state,
        "start": interval.start,
        "end": interval.end,
        "kw": interval.kw,
    }
