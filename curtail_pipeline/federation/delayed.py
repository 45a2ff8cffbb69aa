"""Rounds that are merged while the next one trains (`rounds.overlap`). With `update(r, site)` as it arrives coded,

    start(r + 1, site) = weights(r - 1) - update(r, site)
    weights(r)         = weights(r - 1) - step of the merge of update(r, all)

as with eager updates (arXiv:2502.12996): a site has the merge of the round before last, and of the last one what it has
trained itself. It answers before its update is stored; a record in the store says when it is (`answered.Delivered`).

- At most one round is answered and not merged. Its updates are waited for until each is stored, its site falls silent,
  or `transfer_s` have passed since the answers: then it is refused, and what was trained on top of it, which is refused
  too, gives its text back beside it. The site's next order starts from merged weights alone.
- What is pending when the segment ends is waited for and merged; then what is left of fragments, in a round of its own.
- What an order begins with follows from the rounds before it, refused ones included: so does a replay, whose rounds
  are the realised ones with empty ones among them. A server that takes over has the journal, and the answers of the
  last round from `answered.json`; orders that were under way are sent again, and are the same.
"""

import time
from collections.abc import Mapping

from curtail_pipeline.errors import MessageError
from curtail_pipeline.federation.admission import admit
from curtail_pipeline.federation.answered import Answered, Delivered, Merged, read_answered
from curtail_pipeline.federation.answers import LONGEST_POLL_S, POLL_S
from curtail_pipeline.federation.liveness import Liveness
from curtail_pipeline.federation.next_round import (
    Upcoming,
    is_last_exchange,
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
from curtail_pipeline.federation.orders import JournalLine, Order, Result, Segment
from curtail_pipeline.federation.plan import answered_key, merged_key
from curtail_pipeline.federation.round_merge import admitted, line_of, merge_round, told
from curtail_pipeline.federation.segment_run import SegmentRun
from curtail_pipeline.federation.segment_state import OUTER, SegmentState
from curtail_pipeline.federation.transport import site_said
from curtail_pipeline.storage.store import CorruptObject, NotStored, StoreUnavailable
from curtail_pipeline.times import utc_now


class Pending:
    """A round that was answered: which of its updates are in the store.

    Args:
        results: by site; each is waited for.
    """

    def __init__(self, run: SegmentRun, orders: Mapping[str, Order], results: Mapping[str, Result]) -> None:
        self.refused: dict[str, str] = {}
        self._run, self._orders, self._due = run, orders, dict(results)
        self._since = run.clock()
        self._signs = Liveness(run.store, run.limits, run.clock)
        for site in results:
            self._signs.watch(site, None)

    def is_whole(self) -> bool:
        """Whether nothing is waited for any more; looks into the store."""
        for site in [*self._due]:
            reason: str | None
            try:
                reason = self._reason(site)
            except NotStored:
                reason = self._given_up(site)
            except (CorruptObject, MessageError) as error:
                reason = f"what it says of its update is damaged: {error}"
            except StoreUnavailable:  # says nothing of the site
                self._since, reason = self._run.clock(), None
            if reason is not None:
                del self._due[site]
            if reason:
                self.refused[site] = reason
        return not self._due

    def _reason(self, site: str) -> str:
        found = self._run.store.read_record(self._orders[site].delivered, Delivered)
        if found.error:
            return f"its update was not stored: {site_said(found.error)}"
        if found.weights_sha256 != self._due[site].weights.sha256:
            return f"it stored an update {found.weights_sha256[:12]}, not the one it answered with"
        return ""

    def _given_up(self, site: str) -> str | None:
        """Why the update is waited for no longer; None while it is."""
        if lost := self._signs.lost(site):
            return f"its update was not stored: {lost}"
        waited = self._run.clock() - self._since
        return f"its update was not stored within {waited:.0f} s" if waited > self._run.limits.transfer_s else None


class DelayedRounds:
    """A segment whose rounds overlap. `run` is the whole of it."""

    def __init__(self, run: SegmentRun) -> None:
        self.with_sites, self.plan, self.store, self.folder = run, run.plan, run.store, run.folder
        self.merged = SegmentState(run.plan)
        """Behind the last merged round."""
        self.answered: Answered | None = None
        """The round behind that one."""
        self._pending: Pending | None = None
        self._ended: float | None = None
        """When the last round was answered."""
        self._on_record: JournalLine | None = None
        """Of the answered round, where an earlier server has merged it."""

    def run(self) -> Segment:
        stop_reason = ""
        for number in range(self._resume(), most_rounds(self.plan)):
            if is_last_exchange(self.plan, number):
                self._merge_last()
            coming = self.merged.ahead(self.answered)
            stop_reason = why_it_ends(self.store, self.plan, coming)
            if stop_reason:
                break
            upcoming = next_round(self.plan, coming, number)
            if self.plan.open and not upcoming.steps:
                stop_reason = "no member has tokens left in its lease"
                break
            self._round(coming, upcoming)
        else:
            stop_reason = why_it_ended(self.store, self.plan, self.merged.ahead(self.answered))
        self._ended = time.monotonic()
        self._merge_last()
        if stop_reason == "job finished" and self.merged.step < self.plan.total_steps:
            stop_reason = f"{self.plan.total_steps - self.merged.step} of the job's last steps were refused"
        self.with_sites.await_late()
        if last := last_exchange(self.merged):
            self._round(self.merged.ahead(None), last)
            self._ended = time.monotonic()
            self._merge_last()
        require_delivery(self.plan, self.merged)
        return self.merged.segment(stop_reason)

    def _resume(self) -> int:
        """Go on behind what an earlier server of this plan has done; the number of rounds that were answered.

        Raises:
            FederationError: what it left is damaged, as with rounds that wait.
        """
        lines, answered = self.with_sites.journal.found, read_answered(self.store, self.folder)
        if answered is None:
            return 0
        number = len(lines)
        if lines and lines[-1].done.index == answered.index:  # orders behind it were made before it was merged
            self._on_record = lines.pop()
        else:
            number += 1
        for line in lines:
            self.merged.take(line)
        whole = self.merged.ahead(None)
        if self._on_record:
            whole.take(self._on_record)
        if whole.rounds:
            whole.require_whole(self.store)
        self._wait_for(answered)
        self.with_sites.log(f"{self.plan.key} goes on behind round {answered.index}, at step {whole.step}")
        return most_rounds(self.plan) if is_over(self.plan, answered.index) else number

    def _wait_for(self, answered: Answered) -> None:
        self.answered = answered
        self._pending = Pending(self.with_sites, answered.orders, answered.fitting(self.merged.unmerged))

    def _round(self, coming: SegmentState, upcoming: Upcoming) -> None:
        """Have a round trained and the one before it merged."""
        run, begun, began = self.with_sites, utc_now(), time.monotonic()
        orders = orders_of(self.store, self.plan, coming, self.folder, upcoming)
        run.send(orders)
        found = run.collect(upcoming.index, orders, self._merge_if_whole)
        _, refused = admit(orders, found.results, self.plan.step_size)
        self._merge_last()
        answered = upcoming.answered(orders, found, refused, begun, time.monotonic() - began, overlap=True)
        self.store.write_record(answered_key(self.folder), answered)
        self._wait_for(answered)

    def _merge_last(self) -> None:
        """Have the round that was answered merged, as soon as its updates are there."""
        pause = POLL_S
        while self.answered is not None:
            self._merge_if_whole()
            if self.answered is not None:
                self.with_sites.life.beat("collecting")
                self.with_sites.wait(pause)
                pause = min(pause * 1.05, LONGEST_POLL_S)

    def _merge_if_whole(self) -> None:
        answered, pending = self.answered, self._pending
        if answered is None or pending is None:
            return
        if self._on_record is not None:
            line, self._on_record = self._on_record, None
        elif pending.is_whole():
            line = self._merge(answered, pending.refused)
            self.with_sites.journal.write(line)
        else:
            return
        self.merged.take(line)
        self.answered = self._pending = None
        place = round_folder(self.folder, answered.index)
        self.store.write_record(merged_key(place), Merged(weights=line.done.weights, delta=line.done.delta))
        self._tidy()
        training = max((result.seconds for result in line.results.values()), default=0.0)
        self.with_sites.log(f"{told(line)}; {training:.3g} of {line.wall_s:.3g} s training")

    def _merge(self, answered: Answered, undelivered: Mapping[str, str]) -> JournalLine:
        run, plan, state, orders = self.with_sites, self.plan, self.merged, answered.orders
        run.life.beat("merging")
        delivered = {s: r for s, r in answered.fitting(state.unmerged).items() if s not in undelivered}
        fitting, worse = admitted(plan, state, orders, delivered, run.heldout_loss)
        # an update says what was moved: it is taken off these weights, whatever it was moved from
        here = {site: r.model_copy(update={"parent_sha256": state.weights.sha256}) for site, r in fitting.items()}
        folder = round_folder(self.folder, answered.index)
        report = merge_round(self.store, plan, state, folder, answered.index, orders, here)
        refused = {**answered.refused, **answered.unfounded(state.unmerged), **undelivered, **worse, **report.refused}
        waited = 0.0 if self._ended is None else time.monotonic() - self._ended  # nothing trains meanwhile
        counted = answered.model_copy(update={"refused": refused, "wall_s": answered.wall_s + waited})
        return line_of(state, folder, counted, report)

    def _tidy(self) -> None:
        """Remove what no order that is under way begins with: those have the weights before the last, and the last
        round's updates."""
        done, kept = self.merged.rounds, self.merged.shared.key if self.merged.shared else ""
        for folder in (round_folder(self.folder, earlier.index) for earlier in done[:-2]):
            if not kept.startswith(f"{folder}/"):
                self.store.delete(folder)
        for folder in (round_folder(self.folder, before.index) for before in done[-2:-1]):
            for name in ("inner", "delivered", OUTER, *(f"{site}.safetensors" for site in self.plan.members)):
                self.store.delete(f"{folder}/{name}")
