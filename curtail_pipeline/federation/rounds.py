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
- *This process dies*: `rounds.jsonl` is whole (every write is atomic); whoever runs the plan again goes on behind it.
- *Another attempt of the same key was planned*: `FederationError` at the next round boundary.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.addresses import links_of
from curtail_pipeline.federation.admission import HeldoutLoss, admit, fetch, gate
from curtail_pipeline.federation.answers import Answers, Collector
from curtail_pipeline.federation.budgets import step_budgets
from curtail_pipeline.federation.inner_states import fetch_states, store_merged
from curtail_pipeline.federation.liveness import Liveness
from curtail_pipeline.federation.merge import merge
from curtail_pipeline.federation.merge_report import MergeReport
from curtail_pipeline.federation.orders import (
    JournalLine,
    Order,
    Plan,
    Result,
    RoundDone,
    Segment,
    StoredWeights,
    Watch,
)
from curtail_pipeline.federation.plan import (
    folder_of,
    journal_key,
    late_key,
    planned_attempts,
    read_journal,
    scratch_of,
    segment_key,
    stop_key,
)
from curtail_pipeline.federation.segment_state import DELTA, INNER, OUTER, WEIGHTS, SegmentState
from curtail_pipeline.federation.server_life import LifeWriter
from curtail_pipeline.federation.terms import oddities
from curtail_pipeline.federation.trainer_api import StopOrder
from curtail_pipeline.federation.transport import Transport
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY, Desired
from curtail_pipeline.settings.federation_settings import DEFAULT_LIMITS, LivenessLimits
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import Store
from curtail_pipeline.times import utc_now
from curtail_pipeline.tokens.ranges import compact


@dataclass
class _Round:
    index: int
    start: datetime | None
    end: datetime | None
    steps: Mapping[str, int]
    members: int
    deadline_s: float | None
    stops: Mapping[str, str]
    fresh: tuple[str, ...] = ()


class _Running:
    """One segment while it runs. `run` is the whole of it; use `run_segment`."""

    def __init__(
        self,
        transport: Transport,
        plan: Plan,
        folder: str,
        store: Store,
        *,
        limits: LivenessLimits,
        clock: Callable[[], float],
        wait: Callable[[float], None],
        log: Callable[[str], None],
        heldout_loss: HeldoutLoss | None,
    ) -> None:
        self.transport, self.plan, self.folder, self.store = transport, plan, folder, store
        self.liveness = Liveness(store, limits, clock)
        self.life = LifeWriter(store, folder, clock)
        self.collector = Collector(transport, self.liveness, plan.quorum, clock=clock, beat=self.life.beat, wait=wait)
        self.patience_s, self.log, self.heldout_loss = limits.delivery_s, log, heldout_loss
        self.state = SegmentState(plan)
        self._journal = b""

    def run(self) -> Segment:
        stop_reason = ""
        self._resume()
        rounds = len(self.plan.rounds) if self.plan.rounds is not None else self._cap()
        for number in range(len(self.state.rounds), rounds):
            stop_reason = self._boundary()
            if stop_reason:
                break
            upcoming = self._next(number)
            if not upcoming.steps:
                stop_reason = "no member has tokens left in its lease"
                break
            self._round(upcoming)
        else:
            # the end of the plan, or something that the last round brought about
            stop_reason = self._boundary() or ("length cap" if self.plan.open else self.plan.stop_reason)
        self.collector.await_late(self.patience_s)
        if not any(site.steps for site in self.state.sites.values()) and (self.state.lost or self.state.refusals):
            why = "; ".join(f"{site}: {reason}" for site, reason in (self.state.refusals | self.state.lost).items())
            raise FederationError(
                f"{self.plan.key}: no site delivered an update that could be used ({why}); see the trainers' logs"
            )
        return self.state.segment(stop_reason)

    def _resume(self) -> None:
        """Go on behind the rounds that an earlier server of this plan has merged.

        Raises:
            FederationError: what it left is damaged. Only another attempt may begin anew: trainers remember orders by
                attempt and round, and would take other ones for a mistake.
        """
        lines = read_journal(self.store, self.folder)
        for line in lines:
            self.state.take(line)
        if lines:
            self.state.require_whole(self.store)
            self.log(f"{self.plan.key} goes on behind round {lines[-1].done.index}, at step {self.state.step}")
        self._journal = b"".join(line.model_dump_json().encode() + b"\n" for line in lines)

    def _cap(self) -> int:
        assert self.plan.open is not None
        return self.plan.open.max_rounds

    def _boundary(self) -> str:
        """Why no further round may start; empty when one may."""
        later = [number for number in planned_attempts(self.store, self.plan.key) if number > self.plan.attempt]
        if later and not self.plan.replay:
            raise FederationError(f"{self.plan.key}: attempt {self.plan.attempt} was superseded by attempt {later[-1]}")
        if self.state.lost:
            return "; ".join(f"{site} lost: {reason}" for site, reason in self.state.lost.items())
        if self.plan.open:
            if self.state.step >= self.plan.total_steps:
                return "job finished"
            return self._membership_change()
        return ""

    def _membership_change(self) -> str:
        """Compare the desired membership with this segment's; adopt a newer generation that wants the same members."""
        if not self.store.exists(MEMBERSHIP_KEY):
            return ""
        desired = self.store.read_record(MEMBERSHIP_KEY, Desired)
        if desired.generation <= self.state.generation:
            return ""
        joins = sorted(set(desired.members) - set(self.plan.members))
        leaves = sorted(set(self.plan.members) - set(desired.members))
        if not joins and not leaves:
            self.state.generation = desired.generation
            return ""
        why = {site: desired.reasons.get(site) for site in leaves}
        parts = [f"{site} leaves: {reason}" if reason else f"{site} leaves" for site, reason in why.items()]
        return "; ".join([*parts, *(f"{site} joins" for site in joins)])

    def _next(self, number: int) -> _Round:
        if self.plan.rounds is not None:
            planned = self.plan.rounds[number]
            for site, lease in planned.lease.items():
                if site in planned.steps:
                    self.state.sites[site].pool = compact([*self.state.sites[site].pool, *lease])
            return _Round(
                planned.index,
                planned.start,
                planned.end,
                planned.steps,
                planned.members or len(planned.steps),
                None,
                planned.stops,
                planned.fresh,
            )
        assert self.plan.open is not None
        members = [site for site in self.plan.members if self.state.sites[site].pool]
        left = self.plan.total_steps - self.state.step
        shares = step_budgets(left, {site: self.state.sites[site].tokens_per_s for site in members})
        steps = {site: share for site, share in shares.items() if share}
        return _Round(number, None, None, steps, len(steps), self.plan.open.round_s, {})

    def _order(self, upcoming: _Round, site: str) -> Order:
        plan, folder = self.plan, self._round_folder(upcoming.index)
        inner_state, shared = self.state.begin(site, site in upcoming.fresh)
        order = Order(
            key=plan.key,
            attempt=plan.attempt,
            round=upcoming.index,
            site=site,
            experiment_uri=plan.experiment_uri,
            store=self.store.uri,
            parent=self.state.weights,
            delta=self.state.delta,
            config=plan.parent.config,
            inner_state=inner_state,
            shared=shared,
            residual=left.end if (left := self.state.sites[site].residual) else FRESH,
            first_step=self.state.step,
            members=upcoming.members,
            total_steps=plan.total_steps,
            max_steps=upcoming.steps[site],
            deadline_s=upcoming.deadline_s,
            lease=tuple(self.state.sites[site].pool),
            seed=plan.seed,
            terms=plan.terms,
            watch=Watch(key=MEMBERSHIP_KEY, generation=self.state.generation) if plan.open else None,
            out=f"{folder}/{site}.safetensors",
            codec=plan.exchange.upload,
            inner_out=f"{folder}/inner/{site}.safetensors" if shared else "",
            inner_codec=plan.exchange.state,
            replay=plan.replay,
            stop=stop_key(self.folder),
            late=late_key(self.folder, upcoming.index) if plan.quorum.grace else "",
        )
        return order.with_links(links_of(self.store, order)) if site in plan.linked else order

    def _round_folder(self, index: int) -> str:
        return f"{self.folder}/round-{index:04d}"

    def _round(self, upcoming: _Round) -> None:
        begun, before, began = utc_now(), self.state.step, time.monotonic()
        orders = {site: self._order(upcoming, site) for site in self.plan.members if site in upcoming.steps}
        for site, order in orders.items():
            self.liveness.watch(site, order)
            self.transport.send(site, order)
        answers = self._collect(upcoming.index, orders)
        results, lost = answers.results, answers.lost
        self.life.beat("merging")
        fitting, refused = self._admit(orders, results)
        report = self._merge(upcoming.index, orders, fitting)
        refused |= answers.malformed | answers.late | report.refused
        counted = {site: results[site] for site in sorted(report.accepted)}
        done = RoundDone(
            index=upcoming.index,
            start=upcoming.start or begun,
            end=upcoming.end or utc_now(),
            members=upcoming.members,
            steps={site: result.steps for site, result in counted.items()},
            tokens={site: result.tokens for site, result in counted.items()},
            consumed={site: tuple(compact(result.consumed)) for site, result in counted.items()},
            loss={site: (result.loss_first, result.loss_last) for site, result in counted.items()},
            stops={**upcoming.stops, **{s: r.stop for s, r in counted.items() if r.stop != "steps"}},
            refused=refused,
            lost=lost,
            overdue=answers.overdue,
            odd={s: "; ".join(found) for s, r in counted.items() if (found := oddities(orders[s], r))},
            fresh=tuple(s for s, r in counted.items() if r.inner_state.begin != orders[s].inner_state),
            weights=StoredWeights(key=f"{self._round_folder(upcoming.index)}/{WEIGHTS}", sha256=report.weights.sha256),
            delta=self.state.moved(report, f"{self._round_folder(upcoming.index)}/{DELTA}"),
        )
        kept = {site: order.with_links(None) for site, order in orders.items()}  # they are secrets
        line = JournalLine(done=done, orders=kept, results=results, merge=report, wall_s=time.monotonic() - began)
        self.state.take(line)
        self._write_journal(line)
        self._tidy(upcoming.index, list(orders))
        self.log(
            f"round {upcoming.index}: {self.state.step - before} steps by {', '.join(counted) or 'no site'}"
            + "".join(f"; {site} refused: {why}" for site, why in refused.items())
            + "".join(f"; {site} lost: {why}" for site, why in lost.items())
            + "".join(f"; {site}: {what}" for site, what in (*done.odd.items(), *done.overdue.items()))
        )

    def _collect(self, index: int, orders: Mapping[str, Order]) -> Answers:
        """What became of the orders; whoever is late is told to end."""
        found = self.collector.collect(index, set(orders))
        if found.late:
            plan = self.plan
            ends = StopOrder(key=plan.key, attempt=plan.attempt, replay=plan.replay, round=index)
            self.store.write_record(late_key(self.folder, index), ends)
        return found

    def _admit(
        self, orders: Mapping[str, Order], results: Mapping[str, Result]
    ) -> tuple[dict[str, Result], dict[str, str]]:
        """Results that may be merged, and the reasons for refusing the others."""
        fitting, refused = admit(orders, results, self.plan.step_size)
        if self.plan.heldout_gate is not None and self.heldout_loss is not None:
            fitting, worse = gate(fitting, self.state.weights, self.plan.heldout_gate, self.heldout_loss)
            refused |= worse
        return fitting, refused

    def _merge(self, index: int, orders: Mapping[str, Order], fitting: Mapping[str, Result]) -> MergeReport:
        """Merge what arrived; an update whose file is not what its result says is refused."""
        plan, store = self.plan, self.store
        folder = self._round_folder(index)
        self.state.require_whole(store)
        with ExitStack() as held:
            parent = held.enter_context(store.local(self.state.weights.key))
            clip = plan.step_size.grad_clip if plan.step_size else None
            states, unfit = fetch_states(store, orders, fitting, parent, held, clip)
            updates, gone = fetch(store, {s: r for s, r in fitting.items() if s not in unfit}, held)
            report = merge(
                parent,
                held.enter_context(store.local(self.state.outer.key)) if self.state.outer else None,
                updates,
                plan.mode,
                plan.outer.lr,
                plan.outer.momentum,
                held.enter_context(store.new_file(f"{folder}/{WEIGHTS}")),
                held.enter_context(store.new_file(f"{folder}/{OUTER}")),
                plan.norm_bound,
                self.state.norm_history,
                parent_sha256=self.state.weights.sha256,
                round_index=index,
                least=plan.quorum.least(len(orders)),
                download=plan.exchange.download,
                out_delta=(moved := store.here(f"{folder}/.{DELTA}")),
            )
            inner = store_merged(store, orders, states, report, f"{folder}/{INNER}")
        if report.delta is not None:
            store.adopt(moved, f"{folder}/{DELTA}")
        return report.model_copy(update={"refused": {**report.refused, **unfit, **gone}, "inner": inner})

    def _write_journal(self, line: JournalLine) -> None:
        self._journal += line.model_dump_json().encode() + b"\n"
        self.store.write_bytes(journal_key(self.folder), self._journal)

    def _tidy(self, index: int, sites: list[str]) -> None:
        """Remove what the merged weights of this round have superseded."""
        for name in (*(f"{site}.safetensors" for site in sites), "inner"):
            self.store.delete(f"{self._round_folder(index)}/{name}")
        needed = self.state.shared.key if self.state.shared else ""  # older than this round where nobody delivered
        for earlier in self.state.rounds[:-1]:
            if not needed.startswith(f"{self._round_folder(earlier.index)}/"):
                self.store.delete(self._round_folder(earlier.index))


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
    running = _Running(
        transport,
        plan,
        place,
        store,
        limits=limits,
        clock=clock,
        wait=wait,
        log=log,
        heldout_loss=heldout_loss,
    )
    outcome = running.run()
    store.write_record(segment_key(place), outcome)
    running.life.close()
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
