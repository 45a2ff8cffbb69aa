"""What a segment does next: end, and why, or another round, with an order for each of its sites."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.addresses import links_of
from curtail_pipeline.federation.answered import Answered
from curtail_pipeline.federation.answers import Answers
from curtail_pipeline.federation.budgets import step_budgets
from curtail_pipeline.federation.fragments import Fragment, turn
from curtail_pipeline.federation.orders import Order, Plan, Watch
from curtail_pipeline.federation.plan import delivered_key, late_key, merged_key, planned_attempts, stop_key
from curtail_pipeline.federation.segment_state import SegmentState
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY, Desired
from curtail_pipeline.storage.manifest import FRESH
from curtail_pipeline.storage.store import Store
from curtail_pipeline.times import utc_now
from curtail_pipeline.tokens.ranges import compact


@dataclass(frozen=True)
class Upcoming:
    """A round before its orders go out."""

    index: int
    start: datetime | None
    end: datetime | None
    steps: Mapping[str, int]
    members: int
    deadline_s: float | None
    stops: Mapping[str, str]
    first_step: int
    fresh: tuple[str, ...] = ()
    forgot: tuple[str, ...] = ()
    fragment: Fragment | None = None

    def answered(
        self,
        orders: Mapping[str, Order],
        found: Answers,
        refused: Mapping[str, str],
        begun: datetime,
        wall_s: float,
        *,
        overlap: bool = False,
    ) -> Answered:
        """The round with what came of its orders.

        Args:
            refused: results that do not fit.
            begun: when the orders went out.
            wall_s: since then.
        """
        return Answered(
            index=self.index,
            start=self.start or begun,
            end=self.end or utc_now(),
            first_step=self.first_step if overlap else None,
            members=self.members,
            stops=dict(self.stops),
            orders={site: order.with_links(None) for site, order in orders.items()},
            results=found.results,
            refused={**refused, **found.malformed, **found.late},
            lost=found.lost,
            overdue=found.overdue,
            wall_s=wall_s,
        )


def round_folder(folder: str, index: int) -> str:
    """Where the files of a round lie."""
    return f"{folder}/round-{index:04d}"


def most_rounds(plan: Plan) -> int:
    """How many rounds a segment may have."""
    if plan.rounds is not None:
        return len(plan.rounds)
    assert plan.open is not None
    return plan.open.max_rounds


def why_it_ends(store: Store, plan: Plan, state: SegmentState) -> str:
    """Why no further round may start; empty when one may.

    Raises:
        FederationError: another attempt took over.
    """
    later = [number for number in planned_attempts(store, plan.key) if number > plan.attempt]
    if later and not plan.replay:
        raise FederationError(f"{plan.key}: attempt {plan.attempt} was superseded by attempt {later[-1]}")
    if state.lost:
        return "; ".join(f"{site} lost: {reason}" for site, reason in state.lost.items())
    if plan.open:
        if state.step >= plan.total_steps:
            return "job finished"
        return _membership_change(store, plan, state)
    return ""


def _membership_change(store: Store, plan: Plan, state: SegmentState) -> str:
    """Compare the desired membership with this segment's; adopt a newer generation that wants the same members."""
    if not store.exists(MEMBERSHIP_KEY):
        return ""
    desired = store.read_record(MEMBERSHIP_KEY, Desired)
    if desired.generation <= state.generation:
        return ""
    joins = sorted(set(desired.members) - set(plan.members))
    leaves = sorted(set(plan.members) - set(desired.members))
    if not joins and not leaves:
        state.generation = desired.generation
        return ""
    why = {site: desired.reasons.get(site) for site in leaves}
    parts = [f"{site} leaves: {reason}" if reason else f"{site} leaves" for site, reason in why.items()]
    return "; ".join([*parts, *(f"{site} joins" for site in joins)])


def why_it_ended(store: Store, plan: Plan, state: SegmentState) -> str:
    """Why a segment ends that has had all its rounds: the end of the plan, or something that the last one brought."""
    return why_it_ends(store, plan, state) or ("length cap" if plan.open else plan.stop_reason)


def require_delivery(plan: Plan, state: SegmentState) -> None:
    """Whether there is something to commit.

    Raises:
        FederationError: no site delivered in the whole segment, and not because all left.
    """
    if not any(site.steps for site in state.sites.values()) and (state.lost or state.refusals):
        why = "; ".join(f"{site}: {reason}" for site, reason in (state.refusals | state.lost).items())
        raise FederationError(
            f"{plan.key}: no site delivered an update that could be used ({why}); see the trainers' logs"
        )


def next_round(plan: Plan, state: SegmentState, number: int) -> Upcoming:
    """The round after so many; what a plan leases for it goes into its sites' pools."""
    if plan.rounds is not None:
        planned = plan.rounds[number]
        for site, lease in planned.lease.items():
            if site in planned.steps:
                state.sites[site].pool = compact([*state.sites[site].pool, *lease])
        return Upcoming(
            index=planned.index,
            start=planned.start,
            end=planned.end,
            steps=planned.steps,
            members=planned.members or len(planned.steps),
            deadline_s=None,
            stops=planned.stops,
            first_step=state.step if planned.first_step is None else planned.first_step,
            fresh=planned.fresh,
            forgot=planned.forgot,
            fragment=None if _whole(plan, number) else turn(plan.exchange.fragments, planned.index),
        )
    assert plan.open is not None
    members = [site for site in plan.members if state.sites[site].pool]
    left = plan.total_steps - state.step
    shares = step_budgets(left, {site: state.sites[site].tokens_per_s for site in members})
    steps = {site: share for site, share in shares.items() if share}
    return Upcoming(
        index=number,
        start=None,
        end=None,
        steps=steps,
        members=len(steps),
        deadline_s=plan.open.round_s,
        stops={},
        first_step=state.step,
        fragment=None if _whole(plan, number) else turn(plan.exchange.fragments, number),
    )


def _whole(plan: Plan, number: int) -> bool:
    """Whether the round after so many exchanges everything: the last one does, where it is known beforehand."""
    told = plan.rounds[number].whole if plan.rounds is not None else None
    return number == most_rounds(plan) - 1 if told is None else told


def last_exchange(state: SegmentState) -> Upcoming | None:
    """A round without steps in which sites send what they have not sent yet; None where there is nothing, and in a
    replay: such a round is among its planned ones. In planned time it takes none.

    There is one at most. Its index is one that no other round has, nor such a round elsewhere: a server that takes over
    may find another membership than the one before, and trainers take another order of the same name for a mistake.
    """
    plan, unsent = state.plan, state.unsent
    index = most_rounds(plan) + len(state.rounds)
    if not unsent or _repeats(plan) or is_over(plan, state.rounds[-1].index):
        return None
    at = state.rounds[-1].end if plan.rounds and plan.rounds[-1].end else None
    return Upcoming(index, at, at, dict.fromkeys(unsent, 0), len(unsent), None, {}, state.step)


def is_over(plan: Plan, index: int) -> bool:
    """Whether a segment has nothing more to do behind the round of this index: it was `last_exchange`'s."""
    return index >= most_rounds(plan) and not _repeats(plan)


def _repeats(plan: Plan) -> bool:
    return plan.rounds is not None and all(planned.whole is not None for planned in plan.rounds)


def is_last_exchange(plan: Plan, number: int) -> bool:
    """Whether the round after so many is one of those, which a replay repeats."""
    return plan.rounds is not None and plan.exchange.fragments > 1 and not any(plan.rounds[number].steps.values())


def orders_of(store: Store, plan: Plan, state: SegmentState, folder: str, upcoming: Upcoming) -> dict[str, Order]:
    """The orders of a round, by site."""
    return {site: _order(store, plan, state, folder, upcoming, site) for site in plan.members if site in upcoming.steps}


def _order(store: Store, plan: Plan, state: SegmentState, folder: str, upcoming: Upcoming, site: str) -> Order:
    place = round_folder(folder, upcoming.index)
    inner_state, shared = state.begin(site, site in upcoming.fresh)
    left = None if site in upcoming.forgot else state.sites[site].residual
    order = Order(
        key=plan.key,
        attempt=plan.attempt,
        round=upcoming.index,
        site=site,
        experiment_uri=plan.experiment_uri,
        store=store.uri,
        parent=state.weights,
        delta=state.delta,
        own=state.own.get(site),
        config=plan.parent.config,
        inner_state=inner_state,
        shared=shared,
        residual=left.end if left else FRESH,
        first_step=upcoming.first_step,
        members=upcoming.members,
        total_steps=plan.total_steps,
        max_steps=upcoming.steps[site],
        deadline_s=upcoming.deadline_s,
        lease=tuple(state.sites[site].pool),
        seed=plan.seed,
        terms=plan.terms,
        watch=Watch(key=MEMBERSHIP_KEY, generation=state.generation) if plan.open else None,
        out=f"{place}/{site}.safetensors",
        codec=plan.exchange.upload,
        fragment=upcoming.fragment,
        goes_on=plan.exchange.fragments > 1,
        inner_out=f"{place}/inner/{site}.safetensors" if state.shared and upcoming.fragment is None else "",
        inner_codec=plan.exchange.state,
        replay=plan.replay,
        stop=stop_key(folder),
        late=late_key(folder, upcoming.index) if plan.quorum.grace else "",
        delivered=delivered_key(place, site) if plan.exchange.overlap else "",
        coming="" if state.answered is None else merged_key(round_folder(folder, state.answered)),
    )
    return order.with_links(links_of(store, order)) if site in plan.linked else order
