"""One round's results into the next weights, in the store: admission, the merge, its files, its line in the journal."""

from collections.abc import Mapping
from contextlib import ExitStack

from curtail_pipeline.federation.admission import HeldoutLoss, admit, fetch, gate
from curtail_pipeline.federation.answered import Answered
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.inner_states import fetch_states, store_merged
from curtail_pipeline.federation.merge import merge
from curtail_pipeline.federation.merge_report import MergeReport
from curtail_pipeline.federation.orders import JournalLine, Order, Plan, Result, RoundDone, StoredWeights
from curtail_pipeline.federation.plan import journal_key, read_journal
from curtail_pipeline.federation.segment_state import DELTA, INNER, OUTER, WEIGHTS, SegmentState
from curtail_pipeline.federation.terms import oddities
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import Store
from curtail_pipeline.tokens.ranges import compact


def admitted(
    plan: Plan,
    state: SegmentState,
    orders: Mapping[str, Order],
    results: Mapping[str, Result],
    heldout_loss: HeldoutLoss | None,
) -> tuple[dict[str, Result], dict[str, str]]:
    """Results that may be merged, and the reasons for refusing the others."""
    fitting, refused = admit(orders, results, plan.step_size)
    if plan.heldout_gate is not None and heldout_loss is not None:
        fitting, worse = gate(fitting, state.weights, plan.heldout_gate, heldout_loss)
        refused |= worse
    return fitting, refused


def merge_round(
    store: Store,
    plan: Plan,
    state: SegmentState,
    folder: str,
    index: int,
    orders: Mapping[str, Order],
    fitting: Mapping[str, Result],
) -> MergeReport:
    """Merge what arrived into files of the round's folder; an update whose file is not what its result says is refused.

    Raises:
        FederationError: the weights or the outer buffer are damaged.
    """
    state.require_whole(store)
    with ExitStack() as held:
        parent = held.enter_context(store.local(state.weights.key))
        clip = plan.step_size.grad_clip if plan.step_size else None
        weights = {site: state.sites[site].weight(orders[site], result) for site, result in fitting.items()}
        stateful = {s: r for s, r in fitting.items() if weights[s] and (r.steps or r.inner_state.begin != FRESH)}
        states, unfit = fetch_states(store, orders, stateful, parent, held, clip)
        updates, gone = fetch(store, {s: r for s, r in fitting.items() if s not in unfit}, weights, held)
        report = merge(
            parent,
            held.enter_context(store.local(state.outer.key)) if state.outer else None,
            updates,
            plan.mode,
            plan.outer.lr,
            plan.outer.momentum,
            held.enter_context(store.new_file(f"{folder}/{WEIGHTS}")),
            held.enter_context(store.new_file(f"{folder}/{OUTER}")),
            plan.norm_bound,
            state.norm_history,
            parent_sha256=state.weights.sha256,
            round_index=index,
            least=plan.quorum.least(len(orders)),
            download=plan.exchange.download,
            out_delta=(moved := store.here(f"{folder}/.{DELTA}")),
            fragment=_fragment(orders),
        )
        inner = store_merged(store, orders, states, report, f"{folder}/{INNER}")
    if report.delta is not None:
        store.adopt(moved, f"{folder}/{DELTA}")
    return report.model_copy(update={"refused": {**report.refused, **unfit, **gone}, "inner": inner})


def _fragment(orders: Mapping[str, Order]) -> Fragment | None:
    """What a round's sites were asked for, all of them the same."""
    return next((order.fragment for order in orders.values()), None)


def line_of(state: SegmentState, folder: str, answered: Answered, report: MergeReport) -> JournalLine:
    """A merged round, for the journal.

    Args:
        state: before it.
        folder: of the round.
        answered: its answers; `refused` names all that do not count.
    """
    orders = answered.orders
    counted = {site: answered.results[site] for site in sorted(report.accepted)}
    done = RoundDone(
        index=answered.index,
        start=answered.start,
        end=answered.end,
        members=answered.members,
        first_step=answered.first_step,
        steps={site: result.steps for site, result in counted.items()},
        tokens={site: result.tokens for site, result in counted.items()},
        consumed={site: tuple(compact(result.consumed)) for site, result in counted.items()},
        loss={site: (result.loss_first, result.loss_last) for site, result in counted.items()},
        stops={**answered.stops, **{s: r.stop for s, r in counted.items() if r.stop != "steps"}},
        refused=answered.refused,
        lost=answered.lost,
        overdue=answered.overdue,
        odd={s: "; ".join(found) for s, r in counted.items() if (found := oddities(orders[s], r))},
        fresh=tuple(s for s, r in counted.items() if r.inner_state.begin != orders[s].inner_state),
        forgot=tuple(s for s, r in counted.items() if r.residual and r.residual.begin != orders[s].residual),
        weights=StoredWeights(key=f"{folder}/{WEIGHTS}", sha256=report.weights.sha256),
        delta=state.moved(report, f"{folder}/{DELTA}"),
        fragment=_fragment(orders),
    )
    return JournalLine(done=done, orders=orders, results=answered.results, merge=report, wall_s=answered.wall_s)


def told(line: JournalLine) -> str:
    """A merged round, for the log."""
    done, steps = line.done, sum(line.done.steps.values())
    what = "what was left" if done.steps and not steps else f"{steps} steps"
    return (
        f"round {done.index}: {what} by {', '.join(done.steps) or 'no site'}"
        + "".join(f"; {site} refused: {why}" for site, why in done.refused.items())
        + "".join(f"; {site} lost: {why}" for site, why in done.lost.items())
        + "".join(f"; {site}: {what}" for site, what in (*done.odd.items(), *done.overdue.items()))
    )


class Journal:
    """`rounds.jsonl`, whole after every line."""

    def __init__(self, store: Store, folder: str) -> None:
        self._store, self._folder = store, folder
        self.found = read_journal(store, folder)
        """What an earlier server of the plan has merged."""
        self._text = b"".join(line.model_dump_json().encode() + b"\n" for line in self.found)

    def write(self, line: JournalLine) -> None:
        self._text += line.model_dump_json().encode() + b"\n"
        self._store.write_bytes(journal_key(self._folder), self._text)
