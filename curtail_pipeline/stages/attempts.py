"""Earlier attempts at a segment, whose finished work is not thrown away."""

from curtail_pipeline.federation.orders import Plan
from curtail_pipeline.federation.plan import plan_key, read_journal, scratch_of, segment_key
from curtail_pipeline.storage.store import Store


def place_of(store: Store, plan: Plan) -> str:
    """The scratch folder to work in, with a plan in it: the last attempt's where its work goes on, else a new one.

    A Dagster run that was killed comes again as another attempt. Its Flower run may still be going, or have merged
    rounds, or be over; all of that counts if it began where this attempt would.
    """
    for attempt in range(plan.attempt - 1, 0, -1):
        folder = scratch_of(plan.key, attempt)
        if store.exists(plan_key(folder)):
            if _goes_on(store, folder, plan):
                return folder
            break  # an older one was superseded by this
    folder = scratch_of(plan.key, plan.attempt)
    if not store.exists(plan_key(folder)):
        store.write_record(plan_key(folder), plan)
    return folder


def _goes_on(store: Store, folder: str, plan: Plan) -> bool:
    """Whether an earlier plan's work is part of what this plan wants.

    Rounds that nobody delivered to are no work, and what broke them would break them again. With open rounds the
    members may differ: the run ends itself at its next boundary, and what it merged is committed.
    """
    earlier = store.read_record(plan_key(folder), Plan)
    done = store.exists(segment_key(folder)) or any(line.done.steps for line in read_journal(store, folder))
    if not done and read_journal(store, folder):
        return False
    same = (earlier.parent, earlier.rounds, earlier.total_steps) == (plan.parent, plan.rounds, plan.total_steps)
    members = (earlier.members, earlier.mode) == (plan.members, plan.mode)
    return same and (members or (done and plan.open is not None))
