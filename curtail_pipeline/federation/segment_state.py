"""What a segment has come to: moved on by one journal line per round, whether it was just written or read again."""

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.answered import Answered
from curtail_pipeline.federation.merge_report import MergeReport
from curtail_pipeline.federation.orders import (
    JournalLine,
    Order,
    OuterState,
    Plan,
    Result,
    RoundDone,
    Segment,
    SharedState,
    StoredDelta,
    StoredWeights,
)
from curtail_pipeline.storage.manifest import FRESH, InnerStates, SiteResult
from curtail_pipeline.storage.store import NotStored, Store
from curtail_pipeline.tokens.ranges import Range, after_prefix, compact

WEIGHTS = "model.safetensors"
OUTER = "outer.safetensors"
DELTA = "delta.safetensors"
INNER = "inner.safetensors"
"""Files in a round's folder."""


@dataclass
class SiteState:
    """What a segment knows of a member between rounds."""

    inner_state: str
    begin: str
    residual: InnerStates | None = None
    pool: list[Range] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    consumed: list[Range] = field(default_factory=list)
    made_with: dict[str, str] = field(default_factory=dict)
    tokens_per_s: float = 0.0
    """As last measured in this segment; 0 before."""
    since: tuple[int, ...] = (0,)
    """Per fragment of the weights: tokens that it has trained on in this segment since that was last exchanged."""

    def weight(self, order: Order, result: Result) -> int:
        """Tokens that a result's update speaks for: all since what it exchanges was exchanged."""
        since = self._held(result)
        return result.tokens + (max(since) if order.fragment is None else since[order.fragment.index])

    def _held(self, result: Result) -> tuple[int, ...]:
        """`since`, as far as a result's update has it: nothing, where what was left is lost."""
        lost = result.residual is None or result.residual.begin == FRESH
        return (0,) * len(self.since) if lost else self.since

    def accept(self, order: Order, result: Result) -> None:
        """Count a result; not one that speaks for nothing, which no merge takes, where what it left out goes on."""
        if order.goes_on and not self.weight(order, result):
            return
        sent = range(len(self.since)) if order.fragment is None else (order.fragment.index,)
        self.since = tuple(0 if n in sent else tokens + result.tokens for n, tokens in enumerate(self._held(result)))
        if not self.steps:
            self.begin = result.inner_state.begin  # what it really began with
        self.made_with = dict(result.made_with)
        self.pool = after_prefix(order.lease, result.consumed)
        self.inner_state = result.inner_state.end
        if result.residual is not None:
            begin = self.residual.begin if self.residual and self.steps else result.residual.begin
            self.residual = InnerStates(begin=begin, end=result.residual.end)
        self.steps += result.steps
        self.tokens_per_s = result.tokens_per_s or self.tokens_per_s
        self.tokens += result.tokens
        self.consumed = compact([*self.consumed, *result.consumed])

    def result(self) -> SiteResult:
        """What it did in the segment so far."""
        return SiteResult(
            steps=self.steps,
            tokens=self.tokens,
            consumed=self.consumed,
            inner_state=InnerStates(begin=self.begin, end=self.inner_state),
            residual=self.residual,
            made_with=self.made_with,
        )


class SegmentState:
    """A segment before its next round; `take` brings it behind it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        fresh = {site: plan.inner_state.get(site, FRESH) for site in plan.members}
        never = (0,) * plan.exchange.fragments
        self.sites = {site: SiteState(state, state, since=never) for site, state in fresh.items()}
        for site, left in plan.residual.items():
            self.sites[site].residual = InnerStates(begin=left, end=left)
        if plan.open:
            for site, site_lease in plan.open.lease.items():
                self.sites[site].pool = compact(site_lease)
        self.step = plan.first_step
        self.weights = StoredWeights(key=plan.parent.weights, sha256=plan.parent.sha256)
        self.delta = plan.parent.delta
        self.outer = OuterState(key=plan.parent.outer) if plan.parent.outer else None
        self.shared = plan.shared
        """What every site begins its next round with; None where each goes on from its own state."""
        self.norm_history = plan.norm_history
        self.generation = plan.open.generation if plan.open else plan.generation
        """Of the desired membership that the segment agrees with."""
        self.lost: dict[str, str] = {}
        self.refusals: dict[str, str] = {}
        self.rounds: list[RoundDone] = []
        self.own: dict[str, StoredWeights] = {}
        """Of sites whose last update is not in the weights yet: where it lies."""
        self.answered: int | None = None
        """The round that is not in the weights yet."""
        self.own_shared: dict[str, SharedState] = {}
        """Of these sites, where inner states are merged: what each left itself."""
        self.unmerged: dict[str, tuple[Range, ...]] = {}
        """Text of the last round's updates that were refused: it comes back beside that of a round on top of them."""

    def _given(self, site: str, order: Order) -> list[Range]:
        """What a site had been given when the order went out, and may be given again."""
        return compact([*(self.unmerged.get(site, ()) if order.own else ()), *order.lease])

    def _note_orders(self, orders: Mapping[str, Order]) -> None:
        for site, order in orders.items():
            self.sites[site].pool = self._given(site, order)
            if order.watch is not None:
                self.generation = max(self.generation, order.watch.generation)

    def ahead(self, answered: Answered | None) -> "SegmentState":
        """A copy from which orders are made while a round that was answered is not merged.

        Its sites and steps are those behind that round; its weights are still those before it.
        """
        coming = copy(self)
        coming.sites = {site: replace(mine) for site, mine in self.sites.items()}
        coming.rounds, coming.lost, coming.refusals = [*self.rounds], dict(self.lost), dict(self.refusals)
        coming.own, coming.own_shared = {}, {}
        if answered is None:
            return coming
        coming.answered = answered.index
        coming._note_orders(answered.orders)
        coming.lost |= answered.lost
        for site, result in answered.fitting(self.unmerged).items():
            order = answered.orders[site]
            sent = coming.sites[site].weight(order, result)
            coming.sites[site].accept(order, result)
            coming.step += result.steps
            if sent:
                coming.own[site] = StoredWeights(key=result.weights.key, sha256=result.weights.sha256)
                if order.inner_out:
                    coming.own_shared[site] = SharedState(name=result.inner_state.end, key=order.inner_out)
        return coming

    def take(self, line: JournalLine) -> None:
        """Count a round. What a refused or lost site did is not: its ranges and inner state stay as they were."""
        self._note_orders(line.orders)
        self.unmerged = {site: line.results[site].consumed for site in line.done.refused if site in line.results}
        for site in sorted(line.results.keys() - line.done.refused.keys()):
            self.sites[site].accept(line.orders[site], line.results[site])
        self.step += sum(line.results[site].steps for site in line.merge.accepted)
        self.weights, self.delta = line.done.weights, line.done.delta
        folder = line.done.weights.key.removesuffix(WEIGHTS)
        self.outer = OuterState(key=folder + OUTER, sha256=line.merge.outer.sha256)
        if line.merge.inner is not None:
            self.shared = SharedState(name=f"sha256:{line.merge.inner.sha256}", key=folder + INNER)
        self.norm_history = line.merge.norm_history
        self.lost |= line.done.lost
        self.refusals |= line.done.refused
        self.rounds.append(line.done)

    @property
    def needed(self) -> list[str]:
        """Store keys of what a site may read to have the weights."""
        return [self.weights.key, *([self.delta.key] if self.delta else [])]

    def moved(self, report: MergeReport, key: str) -> StoredDelta | None:
        """What a merge from these weights has put under the key beside the new weights; None for nothing."""
        if report.delta is None:
            return None
        exchange = self.plan.exchange
        codec = exchange.upload if report.mode == "local" else exchange.download
        return StoredDelta(key=key, sha256=report.delta.sha256, codec=codec, base=self.weights)

    def begin(self, site: str, fresh: bool = False) -> tuple[str, SharedState | None]:
        """The name of the inner state that a site's next round begins with, and where it lies if it is the merged one.

        Args:
            fresh: leave what there is; a replay does where a site had lost it.
        """
        if self.shared is None or any(self.sites[site].since):
            return FRESH if fresh else self.sites[site].inner_state, None
        shared = SharedState(name=FRESH) if fresh else self.own_shared.get(site, self.shared)
        return shared.name, shared

    @property
    def unsent(self) -> list[str]:
        """Sites that have moved something which is not exchanged yet."""
        return [site for site, mine in self.sites.items() if any(mine.since) and site not in self.lost]

    def require_whole(self, store: Store) -> None:
        """Refuse to merge with a file that has changed since the round began: the damage would be in the update.

        Raises:
            FederationError: it has.
        """
        for part in (self.weights, self.outer):
            if part is None or part.sha256 is None:
                continue
            try:
                found = store.stat(part.key).sha256
            except NotStored:
                found = "missing"
            if found != part.sha256:
                raise FederationError(
                    f"{part.key} was damaged while its round ran: it is {found}, not {part.sha256}; the segment starts "
                    "again from what is whole"
                )

    def segment(self, stop_reason: str) -> Segment:
        """The segment as realised, if it ends here."""
        return Segment(
            key=self.plan.key,
            attempt=self.plan.attempt,
            rounds=tuple(self.rounds),
            sites={site: mine.result() for site, mine in self.sites.items()},
            weights=self.weights,
            delta=self.delta if self.rounds else None,
            outer=self.outer,
            shared=self.shared,
            stop_reason=stop_reason,
            steps=sum(mine.steps for mine in self.sites.values()),
            tokens=sum(mine.tokens for mine in self.sites.values()),
            norm_history=self.norm_history,
            lost=self.lost,
            refused=self.refusals,
        )
