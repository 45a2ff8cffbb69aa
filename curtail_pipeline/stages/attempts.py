"""Earlier attempts at a segment, whose finished work is not thrown away."""

from collections.abc import Sequence

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.orders import JournalLine, Plan, Segment
from curtail_pipeline.federation.plan import plan_key, planned_attempts, read_journal, scratch_of, segment_key
from curtail_pipeline.federation.segment_state import SegmentState
from curtail_pipeline.storage.store import Store


def place_of(store: Store, plan: Plan) -> str:
    """The scratch folder to work in, with a plan in it: the last attempt's where its work goes on, else a new one.

    A Dagster run that was killed comes again as another attempt. Its Flower run may still be going, or have merged
    rounds, or be over; all of that counts if it began where this attempt would.
    """
    planned = [number for number in planned_attempts(store, plan.key) if number <= plan.attempt]
    if planned:  # one before the last was superseded by it
        folder = scratch_of(plan.key, planned[-1])
        if planned[-1] == plan.attempt or _goes_on(store, folder, plan):
            return folder
    folder = scratch_of(plan.key, plan.attempt)
    store.write_record(plan_key(folder), plan)
    return folder


def _goes_on(store: Store, folder: str, plan: Plan) -> bool:
    """Whether an earlier plan's work is part of what this plan wants.

    Rounds that nobody delivered to are no work, and what broke them would break them again; nor are damaged ones. With
    open rounds the members may differ: the run ends itself at its next boundary, and what it merged is committed.
    """
    earlier, journal = store.read_record(plan_key(folder), Plan), read_journal(store, folder)
    over = store.exists(segment_key(folder))
    if over and not store.exists(store.read_record(segment_key(folder), Segment).weights.key):
        return False
    done = over or any(line.done.steps for line in journal)
    if journal and not done:
        return False
    if not over and journal and not _is_whole(store, folder, earlier, journal):
        return False
    same = (earlier.parent, earlier.rounds, earlier.total_steps) == (plan.parent, plan.rounds, plan.total_steps)
    members = (earlier.members, earlier.mode) == (plan.members, plan.mode)
    return same and (members or (done and plan.open is not None))


def _is_whole(store: Store, folder: str, plan: Plan, journal: Sequence[JournalLine]) -> bool:
    """Whether what the last of these rounds merged is still what it was.

    A server that is still at work removes that once it has merged another round: then the journal has grown.
    """
    state = SegmentState(plan)
    for line in journal:
        state.take(line)
    try:
        state.require_whole(store)
    except FederationError:
        later = read_journal(store, folder)
        return len(later) > len(journal) and _is_whole(store, folder, plan, later)
    return True
