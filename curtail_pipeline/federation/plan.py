"""Where a segment's files lie, and the plan that repeats a realised one."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from curtail_pipeline.federation.grace import Quorum
from curtail_pipeline.federation.orders import JournalLine, Plan, PlannedRound, Segment, SharedState, SiteTerms
from curtail_pipeline.storage.store import Store

REPLAYS = "scratch/replays"


def folder_of(plan_key: str) -> str:
    """The scratch folder that a plan lies in; everything a segment writes goes there."""
    return str(PurePosixPath(plan_key).parent)


def scratch_of(key: str, attempt: int) -> str:
    """The scratch folder of an attempt at a checkpoint."""
    return f"scratch/{key}/{attempt}"


def planned_attempts(store: Store, key: str) -> list[int]:
    """The attempts at a checkpoint that have a plan and were not tidied away, in order."""
    numbers = sorted(int(name) for name in store.list(f"scratch/{key}") if name.isdecimal())
    return [number for number in numbers if store.exists(plan_key(scratch_of(key, number)))]


def replay_folder(replay: str) -> str:
    """The scratch folder of a repetition; no attempt at a checkpoint is ever in it."""
    return f"{REPLAYS}/{replay}"


def plan_key(folder: str) -> str:
    return f"{folder}/plan.json"


def journal_key(folder: str) -> str:
    return f"{folder}/rounds.jsonl"


def segment_key(folder: str) -> str:
    """Of the outcome, which is written last."""
    return f"{folder}/segment.json"


def stop_key(folder: str) -> str:
    """Of the record that ends the segment's orders at whichever site works on one."""
    return f"{folder}/stop.json"


def late_key(folder: str, index: int) -> str:
    """Of the record that ends a round at whoever still works on it."""
    return f"{folder}/late-{index:04d}.json"


def answered_key(folder: str) -> str:
    """Of the last round that was answered, where one is merged while the next one trains."""
    return f"{folder}/answered.json"


def delivered_key(round_folder: str, site: str) -> str:
    """Of the record that what a site answered for is in the store."""
    return f"{round_folder}/delivered/{site}.json"


def merged_key(round_folder: str) -> str:
    """Of the record of a round's merge."""
    return f"{round_folder}/merged.json"


def parse_journal(text: bytes, source: str, begin: int = 0) -> list[JournalLine]:
    """The rounds that are in a `rounds.jsonl`, from the one of that index on.

    Raises:
        MessageError: a line is no journal line of this version.
    """
    lines = text.splitlines()[begin:]
    return [JournalLine.read(line, f"line {n} of {source}") for n, line in enumerate(lines, begin + 1)]


def read_journal(store: Store, folder: str, begin: int = 0) -> list[JournalLine]:
    """The rounds of a segment, or those from an index on: a line has whole orders, and takes long to parse.

    None where it has not merged one. Errors as of `parse_journal`.
    """
    key = journal_key(folder)
    return parse_journal(store.read_bytes(key), key, begin) if store.exists(key) else []


def replay_of(
    plan: Plan,
    realised: Segment,
    states: Mapping[str, str],
    replay: str,
    *,
    shared: SharedState | None = None,
    residuals: Mapping[str, str] | None = None,
) -> Plan:
    """The plan that repeats a realised segment.

    Every site gets the steps and the ranges it really consumed. A site whose update was refused or lost is left out,
    and `members` keeps the number that the learning rate of the others depended on. A round that gave nothing left the
    weights as they were, and goes; where rounds overlap it stays: what the next ones began with depends on it.

    Args:
        states: per site the inner state to begin with.
        replay: identity of this repetition, which no other has.
        shared: the merged inner state to begin with, where they are merged.
        residuals: likewise what updates had left out, where codecs do.
    """
    rounds = [
        PlannedRound(
            index=done.index,
            start=done.start,
            end=done.end,
            steps=done.steps,
            lease={site: done.consumed[site] for site in done.steps},
            members=done.members,
            first_step=done.first_step,
            fresh=done.fresh,
            forgot=done.forgot,
            whole=done.fragment is None,
        )
        for done in realised.rounds
        if done.steps or plan.exchange.overlap
    ]
    changes = {
        "rounds": tuple(rounds),
        "open": None,
        "written": None,
        "quorum": Quorum(),  # who was late is left out
        "replay": replay,
        "inner_state": dict(states),
        "shared": shared,
        "residual": dict(residuals or {}),
        "terms": SiteTerms(lost_state="refuse"),  # other versions show in the comparison
    }
    return Plan.model_validate({**dict(plan), **changes})
