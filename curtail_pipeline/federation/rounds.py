"""The rounds of a segment: send orders, wait for results, merge, again. Knows nothing of Flower.

What can fail, and what follows:

- *A site is lost* (no heartbeat, no progress within the limits of `liveness`, its agent restarted while it worked on
  the order, or the transport reports a failure): the round goes on with the others, the segment ends after it, and the
  stop reason names the site. A reply that arrives later is ignored.
- *An update is refused* (see `outer.merge`; also a result that does not fit its order): the round goes on with the
  others and the site takes part in the next one.
- *A site is late* (`grace`): the round goes on with the others, its order is ended, and its answer is not used when it
  comes. *Fewer than a quorum* can be merged: none is.
- In all of these cases nothing the site did counts: its next order starts from the inner state of its last accepted
  result, and its lease starts again at the ranges it was given.
- *No site delivers* in a round: the round's starting weights go on.
- *No site delivers in the whole segment*, and not because all left: `FederationError`, nothing to commit.
- *The weights are exchanged in fragments*: what is left of them is sent in a last round without steps. What a site that
  is lost before had left counts, lies in its residual, and comes with its next update.
- *This process dies*: `rounds.jsonl` is whole (every write is atomic); whoever runs the plan again goes on behind it.
- *Another attempt of the same key was planned*: `FederationError` at the next round boundary.
"""

import time
from collections.abc import Callable

from curtail_pipeline.federation.admission import HeldoutLoss
from curtail_pipeline.federation.delayed import DelayedRounds
from curtail_pipeline.federation.next_round import (
    Upcoming,
    is_over,
    last_exchange,
    most_rounds,
    next_round,
    orders_of,
    require_delivery,
    round_folder,
    why_it_ended,
    why_it_ends,
)
from curtail_pipeline.federation.orders import Plan, Segment
from curtail_pipeline.federation.plan import folder_of, scratch_of, segment_key
from curtail_pipeline.federation.round_merge import admitted, line_of, merge_round, told
from curtail_pipeline.federation.segment_run import SegmentRun
from curtail_pipeline.federation.segment_state import SegmentState
from curtail_pipeline.federation.transport import Transport
from curtail_pipeline.settings.federation_settings import DEFAULT_LIMITS, LivenessLimits
from curtail_pipeline.storage.store import Store
from curtail_pipeline.times import utc_now


class _WaitingRounds:
    """Rounds that are merged before the next one begins. `run` is the whole of it; use `run_segment`."""

    def __init__(self, run: SegmentRun) -> None:
        self.with_sites, self.plan, self.store, self.folder = run, run.plan, run.store, run.folder
        self.state = SegmentState(run.plan)

    def run(self) -> Segment:
        stop_reason = ""
        for number in range(self._resume(), most_rounds(self.plan)):
            stop_reason = why_it_ends(self.store, self.plan, self.state)
            if stop_reason:
                break
            upcoming = next_round(self.plan, self.state, number)
            if not upcoming.steps:
                stop_reason = "no member has tokens left in its lease"
                break
            self._round(upcoming)
        else:
            stop_reason = why_it_ended(self.store, self.plan, self.state)
        self.with_sites.await_late()
        if last := last_exchange(self.state):
            self._round(last)
        require_delivery(self.plan, self.state)
        return self.state.segment(stop_reason)

    def _resume(self) -> int:
        """Go on behind the rounds that an earlier server of this plan has merged; the number of the next one.

        Raises:
            FederationError: what it left is damaged. Only another attempt may begin anew: trainers remember orders by
                attempt and round, and would take other ones for a mistake.
        """
        lines = self.with_sites.journal.found
        for line in lines:
            self.state.take(line)
        if lines:
            self.state.require_whole(self.store)
            self.with_sites.log(
                f"{self.plan.key} goes on behind round {lines[-1].done.index}, at step {self.state.step}"
            )
            if is_over(self.plan, lines[-1].done.index):
                return most_rounds(self.plan)
        return len(lines)

    def _round(self, upcoming: Upcoming) -> None:
        run, plan, store = self.with_sites, self.plan, self.store
        begun, began = utc_now(), time.monotonic()
        folder = round_folder(self.folder, upcoming.index)
        orders = orders_of(store, plan, self.state, self.folder, upcoming)
        run.send(orders)
        found = run.collect(upcoming.index, orders)
        run.life.beat("merging")
        fitting, refused = admitted(plan, self.state, orders, found.results, run.heldout_loss)
        report = merge_round(store, plan, self.state, folder, upcoming.index, orders, fitting)
        answered = upcoming.answered(orders, found, refused, begun, time.monotonic() - began)
        answered = answered.model_copy(update={"refused": answered.refused | report.refused})
        line = line_of(self.state, folder, answered, report)
        self.state.take(line)
        run.journal.write(line)
        self._tidy(upcoming.index, list(orders))
        run.log(told(line))

    def _tidy(self, index: int, sites: list[str]) -> None:
        """Remove what the merged weights of this round have superseded."""
        for name in (*(f"{site}.safetensors" for site in sites), "inner"):
            self.store.delete(f"{round_folder(self.folder, index)}/{name}")
        needed = self.state.shared.key if self.state.shared else ""  # older than this round where nobody delivered
        for earlier in self.state.rounds[:-1]:
            if not needed.startswith(f"{round_folder(self.folder, earlier.index)}/"):
                self.store.delete(round_folder(self.folder, earlier.index))


def run_segment(
    transport: Transport,
    plan: Plan,
    store: Store,
    *,
    folder: str | None = None,
    limits: LivenessLimits = DEFAULT_LIMITS,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
    log: Callable[[str], None] = print,
    heldout_loss: HeldoutLoss | None = None,
) -> Segment:
    """Run a segment to its end; write `rounds.jsonl` per round and `segment.json` last, and return the latter.

    Args:
        transport: how orders reach the members.
        folder: scratch folder (a store key); `scratch/<key>/<attempt>` when not given.
        limits: how long a site may show no progress.
        clock, wait: monotonic seconds and sleep; a test passes its own.
        heldout_loss: judges updates where the plan has a gate.

    Raises:
        FederationError: no site delivered, or another attempt took over.
    """
    place = folder or scratch_of(plan.key, plan.attempt)
    run = SegmentRun(
        transport, plan, place, store, limits=limits, clock=clock, wait=wait, log=log, heldout_loss=heldout_loss
    )
    rounds = DelayedRounds(run) if plan.exchange.overlap else _WaitingRounds(run)
    outcome = rounds.run()
    store.write_record(segment_key(place), outcome)
    run.life.close()
    return outcome


def run_plan(
    transport: Transport,
    key: str,
    store: Store,
    *,
    limits: LivenessLimits,
    log: Callable[[str], None] = print,
    heldout_loss: HeldoutLoss | None = None,
) -> Segment:
    """`run_segment` for a plan in the store; the segment is written beside it."""
    plan = store.read_record(key, Plan)
    return run_segment(transport, plan, store, folder=folder_of(key), limits=limits, log=log, heldout_loss=heldout_loss)
