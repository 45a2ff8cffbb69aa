"""Policy `budget`: the cheapest schedule that does the job by its deadline, or word of how much is missing."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.scheduling.planner import capacity, expected_cost
from curtail_pipeline.scheduling.policy_forecast import ForecastParameters, ForecastPolicy
from curtail_pipeline.scheduling.predictors import make_forecast
from curtail_pipeline.scheduling.view import Job, SiteDecision, View
from curtail_pipeline.signals.held import Signal
from curtail_pipeline.times import from_us, iso


class BudgetParameters(ForecastParameters):
    """Of the policy `budget`."""

    budget: float | None = Field(default=None, gt=0)
    """kg CO2, or currency where `spend` is cost; no limit when not given."""
    spend: Literal["co2", "cost"] = "co2"
    """What is spent. For cost, the traces need a price (currency/MWh) for every region."""


class BudgetPolicy(ForecastPolicy):
    """Plans like `forecast`, in grams or in money, and refuses to start a job that its budget or deadline can't pay.

    What is expected is held against the budget before the first step. Once under way the job is not given up: what was
    spent on it would be lost.
    """

    name = "budget"
    parameters: ClassVar[type[ForecastParameters]] = BudgetParameters
    settings: BudgetParameters

    def __init__(self, view: View) -> None:
        super().__init__(view)
        if self.settings.spend == "cost":
            self.unit = "per MWh"
            name = self.forecast.name if self.forecast.name in {"perfect", "persistence"} else "seasonal"
            self.forecast = make_forecast(name, self.signals(view))

    def signals(self, view: View) -> Mapping[str, Signal]:
        if self.settings.spend == "co2":
            return view.signals
        missing = [site.region for site in view.sites if site.region not in view.prices]
        if missing:
            raise PolicyError(
                f"policy 'budget' of cost needs a price for region {missing[0]!r}: add a trace of kind price "
                "(currency/MWh)"
            )
        return view.prices

    def sites(self, view: View, us: int, job: Job) -> dict[str, SiteDecision]:
        if job.steps_done == 0 and not job.previous:
            self.require_feasible(view, us, job)
        return super().sites(view, us, job)

    def require_feasible(self, view: View, us: int, job: Job) -> float:
        """What the job is expected to cost, in the budget's unit.

        Raises:
            PolicyError: by how many steps the deadline, or by how much the budget, is too tight.
        """
        deadline = self._deadline_us(job)
        if not self.perfect and not self._is_near(us, deadline):
            expected = self._expected_far(view, us, job, deadline)
        else:
            course = self.plan(view, us, job, deadline).course
            self._require_steps(job, deadline, course.steps - job.steps_done)
            expected = course.cost / 1_000
        budget = self.settings.budget
        if budget is not None and expected > budget:
            unit = "kg CO2" if self.settings.spend == "co2" else "of the price's currency"
            raise PolicyError(
                f"the budget of {budget:g} {unit} is infeasible: the cheapest schedule by {iso(from_us(deadline))} is "
                f"expected to take {expected:.3f}, {expected - budget:.3f} more; raise the budget or give a later "
                "deadline"
            )
        return expected

    def _expected_far(self, view: View, us: int, job: Job, deadline: int) -> float:
        """As `require_feasible`, from the forecast's spread: single plans so far ahead would be guesses."""
        sites = self._all_slots(view, us, self._edges(us, deadline))
        self._require_steps(job, deadline, capacity(sites, [False] * len(sites)))
        price, _ = self._plan(view, us, job, deadline, [False] * len(sites))
        # Grams to kilograms; price x kWh is in thousandths of the currency.
        return expected_cost(sites, price, job.steps_left) / 1_000

    def _require_steps(self, job: Job, deadline: int, possible: float) -> None:
        if possible < job.steps_left:
            raise PolicyError(
                f"the deadline {iso(from_us(deadline))} is infeasible: all sites together can do {possible:.0f} of "
                f"{job.steps_left} steps by then, {job.steps_left - possible:.0f} short; give a later deadline"
            )
