"""The states of a site tile the time it was provisioned, whatever was ordered and whatever broke."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.scheduling.provisioned_time import Ordered, Work, provisioned_power
from curtail_pipeline.scheduling.view import SiteDecision
from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.settings.sites import PowerState, Site, power_kw

START = datetime(2026, 5, 1, tzinfo=UTC)
MINUTES = 90
LOST = Overheads(provisioning_s=240, connect_s=60, stop_drain_s=120)
SITES = [Site(name=name, region="R", training_kw=2.0, idle_kw=0.2, pue=1.5, steps_per_s=1.0) for name in ("A", "B")]


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


@st.composite
def told(draw: st.DrawFn) -> list[Ordered]:
    """Orders as a controller gives them: a start takes five minutes, `off` keeps when the site was last started."""
    sites = {site.name: SiteDecision("off", "", START) for site in SITES}
    orders = []
    for minute in sorted(draw(st.sets(st.integers(0, MINUTES), max_size=8))):
        for name, before in sites.items():
            state = draw(st.sampled_from(["train", "warm", "off"]))
            if state == before.state:
                continue
            joins = before.state == "off"
            ready = at(minute + 5) if joins else before.ready
            sites[name] = SiteDecision(state, "", at(minute), ready)  # type: ignore[arg-type]
        phase = draw(st.sampled_from(["starting", "up", "stopping", "off", None]))
        orders.append(Ordered(at=at(minute), sites=dict(sites), phases={} if phase is None else {"B": phase}))
    return orders


STRETCH = st.tuples(st.integers(-5, MINUTES + 5), st.integers(0, 40))
WORK = st.builds(
    lambda site, state, stretch: Work(site, state, at(stretch[0]), at(sum(stretch))),
    st.sampled_from(["A", "B"]),
    st.sampled_from(["training", "failed", "transfer", "idle"]),
    STRETCH,
)


def expected(site: str, orders: list[Ordered], work: list[Work], now: datetime) -> PowerState | None:
    """The state at an instant by the definition, without any stretch of time."""
    doing = {part.state for part in work if part.site == site and part.start <= now < part.end}
    for state in ("training", "failed", "transfer", "idle"):
        if state in doing:
            return state  # type: ignore[return-value]
    before = [order for order in orders if order.at <= now]
    if not before:
        return None
    if site in before[-1].phases:  # it has a provisioner, which knows
        return {"starting": "start_up", "up": "idle", "stopping": "idle", "off": None}[before[-1].phases[site]]  # type: ignore[return-value]
    last = before[-1].sites[site]
    if last.state == "off":
        return "idle" if last.ready is not None and now < last.since + timedelta(minutes=2) else None
    assert last.ready is not None
    return "start_up" if now < last.ready - timedelta(minutes=1) else "idle"


@given(told(), st.lists(WORK, max_size=12))
def test_the_states_of_a_site_tile_its_provisioned_time(orders: list[Ordered], work: list[Work]) -> None:
    found = provisioned_power([(site, LOST) for site in SITES], orders, work, START, at(MINUTES))
    for site in SITES:
        own = [part for part in found if part.site == site.name]
        assert all(part.start < part.end for part in own)
        assert all(a.end <= b.start for a, b in pairwise(own)), "in order, without overlap"
        states = {part.state: part.kw for part in own}
        assert states == {state: power_kw(site, state) for state in states}
        provisioned = 0
        for half in range(2 * MINUTES):
            now = at(half / 2 + 0.25)
            (*states_now,) = [part.state for part in own if part.start <= now < part.end]
            wanted = expected(site.name, orders, work, now)
            assert states_now == ([] if wanted is None else [wanted])
            provisioned += wanted is not None
        assert sum((part.end - part.start for part in own), timedelta()) == timedelta(minutes=provisioned / 2)


def test_a_round_ends_where_the_next_begins_and_counts_apart() -> None:
    work = [
        Work("A", "training", at(0), at(10)),
        Work("A", "training", at(10), at(20)),
        Work("A", "idle", at(0), at(25)),
    ]
    found = provisioned_power([(SITES[0], LOST)], [], work, START, at(MINUTES))
    assert [(part.state, part.start, part.end) for part in found] == [
        ("training", at(0), at(10)), ("training", at(10), at(20)), ("idle", at(20), at(25)),
    ]  # fmt: skip
