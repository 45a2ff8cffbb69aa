"""Policy `forecast`: the cleanest site-hours that a forecast shows before the deadline, and no others."""

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar

import numpy as np
from pydantic import Field

from curtail_pipeline.emissions.battery import power_at
from curtail_pipeline.errors import PolicyError
from curtail_pipeline.scheduling.committed import FORECAST_WALKS, PERFECT_WALKS, Committed, standing_of
from curtail_pipeline.scheduling.earlier_deadlines import earlier_deadlines
from curtail_pipeline.scheduling.joint_rounds import WithoutWaiting, waits
from curtail_pipeline.scheduling.outlook import Outlook
from curtail_pipeline.scheduling.plan_search import searched
from curtail_pipeline.scheduling.planner import TOP_PRICE, Advice, Slots, advise, capacity, or_dearest, prices_by_spread
from curtail_pipeline.scheduling.policies import Parameters, lost_at_start_us, start_up_us
from curtail_pipeline.scheduling.predictors import Forecast, SeasonalForecast, forecast_like
from curtail_pipeline.scheduling.rollout import Course, Rollout
from curtail_pipeline.scheduling.round_losses import RoundLosses
from curtail_pipeline.scheduling.stays import Plan, stays_of
from curtail_pipeline.scheduling.tariffs import Tariff
from curtail_pipeline.scheduling.timing import step_us
from curtail_pipeline.scheduling.view import Job, SiteDecision, View
from curtail_pipeline.settings.sites import Site, power_kw
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.times import FOREVER, HOUR, SECOND, Floats, Micros, from_us, iso, to_us

INSURANCE = 0.5
"""The margin may raise the price by this share: spare hours are taken while they cost little more."""
FAR_VALUES = 3
"""Values of the signal per slot far ahead."""


class ForecastParameters(Parameters):
    """Of the policies `forecast` and `budget`."""

    margin: float | None = Field(default=None, ge=0)
    """Share of the steps left that is planned for beyond them, where that costs little. When not given, 0.02, and none
    with a perfect forecast."""
    plan_slots: int = Field(default=300, ge=1)
    """Up to this many slots ahead the price comes from complete plans; beyond, from the spread of the forecast."""
    near_slots: int = Field(default=72, ge=1)
    """Slots looked over for starting and holding when the deadline is further than `plan_slots`."""


class ForecastPolicy:
    """Plans at each new value of the signal: a price per step such that the site-hours below it just do the job.

    A site trains where its present value is below the price and, when it is off, where enough of the time ahead is,
    to pay for its start. With slack the price is low and good windows pass for better ones; as slack goes, it rises,
    until every hour counts. Windows do not matter to it, the accounting signal does.
    """

    name = "forecast"
    parameters: ClassVar[type[ForecastParameters]] = ForecastParameters
    unit = "g/kWh"

    def __init__(self, view: View) -> None:
        self.settings = self.parameters.of(view.experiment.policy)
        self.forecast: Forecast = view.forecasts or SeasonalForecast(view.signals)
        self.cadence = min((signal.cadence_us for signal in view.signals.values()), default=300 * SECOND)
        given = self.settings.margin
        self.margin = given if given is not None else 0.0 if self.forecast.name == "perfect" else 0.02
        self.tick = self.cadence
        self.perfect = self.forecast.name == "perfect"
        self.made = forecast_like(self.forecast, view.on_site)
        self.committed: Committed | None = None
        self.start_ups = tuple(start_up_us(view.experiment.overheads_of(site)) for site in view.sites)
        self.losses = RoundLosses.of(view)
        self.waits = WithoutWaiting(view.experiment) if waits(view.experiment) else None

    @property
    def plans_rounds(self) -> bool:
        """A plan in force is walked with its rounds; where only a price is known yet, each site goes by itself."""
        return self.committed is not None

    def signals(self, view: View) -> Mapping[str, Signal]:
        """What a kWh costs, per region."""
        return view.signals

    def next_event(self, view: View, us: int) -> int:
        """The next new value of the signal, or what the plan in force does before it."""
        if self.committed is not None:
            event = self.committed.next_event(us)
            return event if self.perfect and event < FOREVER else min(event, us // self.tick * self.tick + self.tick)
        offsets = {0, *(start_up % self.tick for start_up in self.start_ups)}
        return min((us - offset) // self.tick * self.tick + self.tick + offset for offset in offsets)

    def sites(self, view: View, us: int, job: Job) -> dict[str, SiteDecision]:
        deadline = self._deadline_us(job)
        if self.perfect or self._is_near(us, deadline):
            return self._following(view, us, job, deadline)
        self.committed = None
        if us % self.tick == 0 or view.as_of is not None or not job.previous:
            found = self._planned(view, us, job)
        else:
            found = {site.name: self._carried(site, us, job) for site in view.sites}
        if us % self.tick or view.as_of is not None:
            self._let_join(us, job, found)
        return found

    def _following(self, view: View, us: int, job: Job, deadline: int) -> dict[str, SiteDecision]:
        """As the plan in force says; it is made where there is none, or the job does not stand where it has it."""
        plan = self.plan(view, us, job, deadline)
        found = {}
        for i, site in enumerate(view.sites):
            train, up = plan.wants(i, us)
            before = job.previous.get(site.name)
            value = self.signals(view)[site.region].at(us)
            if np.isnan(value):
                # Nothing starts or trains on a signal that is not there; only who knows when it returns waits for it.
                train, up = False, up and self.perfect and _is_up(before)
            reason = self._reason(value, plan.dearest, train, up, deadline)
            found[site.name] = self._next_state(i, us, job, before, train, up, reason)
        return found

    def plan(self, view: View, us: int, job: Job, deadline: int) -> Committed:
        """The plan to follow at `us`."""
        known = self.committed
        current = (
            known is not None and known.made <= us and (self.perfect or known.made // self.tick == us // self.tick)
        )
        if known is not None and current and known.is_followed(view, us, job):
            return known
        others: list[Plan] = []
        # What was planned on another forecast is no start: a live decision, which remembers no plan, is the same.
        if self.perfect and not job.previous:
            others += [tuple(map(stays_of, rival)) for rival in view.rivals]
        clock_end = view.experiment.clock.end
        end = deadline if clock_end is None else min(deadline, to_us(clock_end))
        if self.perfect:
            # Deadlines beyond the record are one deadline.
            deadline = end = min(end, view.end_us)
        edges = self._edges(us, deadline)
        standing, up = standing_of(view, us, job)
        tariffs = [self._tariff(view, i, us, edges, end) for i in range(len(view.sites))]
        slots = self._all_slots(view, us, edges)
        alone = None
        if view.experiment.rounds.open_local:
            alone = [self._slots(view, i, us, edges, alone=True) for i in range(len(slots))]
        rollout = Rollout(view, tariffs, standing, job.steps_total, deadline, end)
        outlook = Outlook(slots, alone, edges, up, self.waits)
        earlier = earlier_deadlines(us, deadline, self.cadence, outlook.size) if self.perfect else []
        plan, course = searched(rollout, outlook, earlier, PERFECT_WALKS if self.perfect else FORECAST_WALKS, others)
        self.committed = Committed(us, plan, course, self._dearest(view, us, course), rollout.done_before(course))
        return self.committed

    def _dearest(self, view: View, us: int, course: Course) -> float | None:
        if course.finish == FOREVER:
            return None
        highest = -np.inf
        for site, rows in zip(view.sites, course.training, strict=True):
            at = np.unique(
                np.array(
                    [t for first, n in rows for t in range(max(first, us), first + n * step_us(site), self.cadence)],
                    dtype=np.int64,
                )
            )
            if len(at):
                highest = np.fmax(highest, np.fmax.reduce(self._expected(view, site, us, at)))
        return float(highest)

    def _expected(self, view: View, site: Site, us: int, at: Micros) -> Floats:
        """The signal at each time as it is expected now; what holds now until the next value."""
        value = self.forecast.predict(site.region, us, at)
        return np.where(at // self.cadence == us // self.cadence, self.signals(view)[site.region].at(us), value)

    def _own_kw(self, view: View, site: Site, us: int, at: Micros) -> Floats:
        """On-site generation at each time, as it is expected now."""
        if site.name not in view.on_site:
            return np.zeros(len(at))
        known = view.on_site[site.name]
        made = np.nan_to_num(self.made.predict(site.name, us, at))
        return np.where(at == us, power_at(known, np.array([us]))[0], made)

    def _tariff(self, view: View, i: int, us: int, edges: Micros, end: int) -> Tariff:
        site = view.sites[i]
        knots = [edges, np.array([max(end, int(edges[-1]) + 1)])]
        if self.perfect:
            of = (self.signals(view)[site.region], view.on_site.get(site.name))
            knots += [signal.edges[(signal.edges > us) & (signal.edges < end)] for signal in of if signal is not None]
        cuts = np.unique(np.concatenate(knots))
        value = self._expected(view, site, us, cuts[:-1])
        kw = power_kw(site, "training"), power_kw(site, "idle"), power_kw(site, "start_up")
        return Tariff.of(cuts, value, kw, self._own_kw(view, site, us, cuts[:-1]))

    def _planned(self, view: View, us: int, job: Job) -> dict[str, SiteDecision]:
        deadline = self._deadline_us(job)
        up = [_is_up(job.previous.get(site.name)) for site in view.sites]
        price, advice = self._plan(view, us, job, deadline, up)
        found = {}
        for i, site in enumerate(view.sites):
            before = job.previous.get(site.name)
            if before is None or before.state == "off":
                train = advice[i].start
            else:
                train = advice[i].resume if _is_held(before, us) else advice[i].train
            hold = up[i] and advice[i].hold
            value = self.signals(view)[site.region].at(us)
            limit = None if price is None else price * site.steps_per_s * 3_600 / power_kw(site, "training")
            reason = self._reason(value, limit, train, hold, deadline)
            found[site.name] = self._next_state(i, us, job, before, train, hold, reason)
        return found

    def _carried(self, site: Site, us: int, job: Job) -> SiteDecision:
        """Between two plans: start-ups end, and sites that stopped to let another join go on."""
        before = job.previous.get(site.name)
        if before is None:
            return SiteDecision("off", "not planned yet", job.started)
        if before.state != "warm" or before.ready is None or us < to_us(before.ready):
            return before
        since = to_us(before.since)
        starting = before.since < before.ready
        let_join = since % self.tick and since < us
        if starting or let_join:
            return SiteDecision("train", before.reason, before.ready if starting else from_us(us), before.ready)
        return before

    def _let_join(self, us: int, job: Job, found: dict[str, SiteDecision]) -> None:
        """End the round at once for a site that has just started up, where that costs less than its waiting would.

        The members stop for the moment that a merge takes: they are told to train again by the next decision.
        """
        train = [name for name, state in found.items() if state.state == "train"]
        joining = [name for name in train if _was_starting(job.previous.get(name))]
        members = [name for name in train if _trained(job.previous.get(name))]
        lost = len(members) * (self.losses.merge_us + self.losses.load_us)
        if not joining or not members or lost >= len(joining) * self.losses.round_us / 2:
            return
        for name in members:
            before = found[name]
            found[name] = SiteDecision("warm", f"lets {', '.join(joining)} join", from_us(us), before.ready)

    def _next_state(
        self, i: int, us: int, job: Job, before: SiteDecision | None, train: bool, hold: bool, reason: str
    ) -> SiteDecision:
        now = from_us(us)
        if before is None or before.state == "off":
            if not train:
                since = job.started if before is None else before.since
                return SiteDecision("off", reason, since, before.ready if before else None)
            ready = now + timedelta(microseconds=self.start_ups[i])
            return SiteDecision("warm" if self.start_ups[i] else "train", reason, now, ready)
        if not train and not hold:
            return SiteDecision("off", reason, now, before.ready)
        if before.ready is not None and to_us(before.ready) > us:
            return SiteDecision("warm", reason, before.since, before.ready)
        if before.state == "warm" and before.ready and before.since < before.ready:
            return (
                SiteDecision("train", reason, before.ready, before.ready)
                if train
                else SiteDecision("warm", reason, now, before.ready)
            )
        same = before.state == ("train" if train else "warm")
        return SiteDecision("train" if train else "warm", reason, before.since if same else now, before.ready)

    def _deadline_us(self, job: Job) -> int:
        if job.deadline is None:
            raise PolicyError(
                f"policy {self.name!r} plans for a deadline and the job has none: set job.deadline, or give --deadline"
            )
        return to_us(job.deadline)

    def _edges(self, us: int, deadline: int) -> Micros:
        """Slot edges from now to the deadline, less what the last round takes.

        Far ahead only the spread of the forecast matters, and a slot of three values stands for its first.
        """
        end = max(deadline - self.losses.merge_us, us + 1)
        first = us // self.cadence * self.cadence + self.cadence
        if self.perfect or self._is_near(us, deadline):
            inner = np.arange(first, end, self.cadence, dtype=np.int64)
        else:
            far = first + self.settings.near_slots * self.cadence
            inner = np.concatenate(
                (np.arange(first, far, self.cadence), np.arange(far, end, FAR_VALUES * self.cadence))
            )
        return np.concatenate(([us], inner, [end]))

    def _is_near(self, us: int, deadline: int) -> bool:
        return deadline - us <= self.settings.plan_slots * self.cadence

    def _plan(self, view: View, us: int, job: Job, deadline: int, up: list[bool]) -> tuple[float | None, list[Advice]]:
        """The price per step (None when there is no time to lose) and the advice for each site."""
        edges = self._edges(us, deadline)
        sites = self._all_slots(view, us, edges)
        dearest = max(float(np.abs(slots.cost).max()) for slots in sites)
        wanted = job.steps_left - self._ahead_steps(view, us, job, int(edges[-1]))
        possible = capacity(sites, up)
        # What no plan sees: one more round than it counts on.
        once_more = sum(site.steps_per_s for site in view.sites) * (self.losses.merge_us + self.losses.load_us) / SECOND
        if possible <= wanted + once_more:
            return None, [advise(slots, TOP_PRICE * dearest + 1) for slots in sites]
        price, safer = prices_by_spread(sites, [wanted, min(wanted * (1 + self.margin) + once_more, possible)])
        price = min(safer, price + INSURANCE * abs(price) + 0.01 * dearest)
        return price, [advise(slots.first(self.settings.near_slots), price) for slots in sites]

    def _ahead_steps(self, view: View, us: int, job: Job, end: int) -> float:
        """Steps that the training sites will do by `end` beyond the average of their rounds.

        Slots count a round's overhead evenly. Right after a round's load the sites are behind that, right before its
        merge ahead of it, and the last round before `end` is cut.
        """
        period = self.losses.round_us + self.losses.merge_us
        # A round may be longer than the period: of a member alone, it is open-ended.
        since = 0 if job.round_started is None else min(us - to_us(job.round_started), period)
        left = max(0, self.losses.round_us - max(since, self.losses.load_us)) if since < period else 0
        full, rest = divmod(max(0, end - us - (period - since)), period)
        if end - us < period - since:
            left, full, rest = min(left, end - us), 0, 0
        total = 0.0
        for i, site in enumerate(view.sites):
            if _trained(job.previous.get(site.name)):
                exact = left + full * self.losses.usable[i] * period + max(0, rest - self.losses.load_us)
                total += (exact - self.losses.usable[i] * (end - us)) / SECOND * site.steps_per_s + 0.5
        return total

    def _all_slots(self, view: View, us: int, edges: Micros) -> list[Slots]:
        return [self._slots(view, i, us, edges) for i in range(len(view.sites))]

    def _slots(self, view: View, i: int, us: int, edges: Micros, *, alone: bool = False) -> Slots:
        """What is expected of a site, in rounds with the others or in an open-ended one of its own."""
        site = view.sites[i]
        hours = np.diff(edges) / HOUR
        value = self.forecast.predict(site.region, us, edges[:-1])
        value[0] = self.signals(view)[site.region].at(us)
        known = ~np.isnan(value)
        value = or_dearest(value)
        made = self._own_kw(view, site, us, edges[:-1])
        value = value * (1 - np.minimum(made / power_kw(site, "training"), 1.0))
        idle_kw, usable = power_kw(site, "idle"), 1.0 if alone else self.losses.usable[i]
        resume = self.losses.load_us if alone else self.losses.resumes[i]
        lost = (lost_at_start_us(view.experiment.overheads_of(site)) if alone else self.losses.starts[i]) / HOUR
        per_hour = site.steps_per_s * 3_600
        waste_kw = idle_kw * (1 - usable) / usable if usable else 0.0
        return Slots(
            np.where(known, hours * per_hour * usable, 0.0),
            value * (power_kw(site, "training") + waste_kw) / per_hour,
            value * idle_kw * hours,
            value * idle_kw * lost,
            np.full(len(value), lost * per_hour * usable),
            np.full(len(value), resume / HOUR * per_hour * usable),
        )

    def _reason(self, value: float, limit: float | None, train: bool, hold: bool, deadline: int) -> str:
        """Why, in terms of the signal: `limit` None means that every hour is needed."""
        by = iso(from_us(deadline))
        if np.isnan(value):
            return "no signal"
        if limit is None:
            return f"at {value:.0f} {self.unit} every hour until {by} is needed"
        if train:
            return f"at {value:.0f} {self.unit} among the best hours before {by}, which go up to {limit:.0f}"
        if hold:
            return f"at {value:.0f} {self.unit}, but back below {limit:.0f} soon enough to save a start"
        if value <= limit:
            return f"at {value:.0f} {self.unit} too short below {limit:.0f} to pay for a start"
        return f"at {value:.0f} {self.unit} it waits: enough hours at or below {limit:.0f} are expected before {by}"


def _was_starting(state: SiteDecision | None) -> bool:
    return state is not None and state.state == "warm" and state.ready is not None and state.since < state.ready


def _trained(state: SiteDecision | None) -> bool:
    return state is not None and state.state == "train"


def _is_held(state: SiteDecision, us: int) -> bool:
    """Whether it has held, ready to train, for a while."""
    return state.state == "warm" and state.ready is not None and state.ready <= state.since < from_us(us)


def _is_up(state: SiteDecision | None) -> bool:
    return state is not None and state.state != "off"
