"""The plan that a planning policy follows: made by search from where the job stands, kept while the job follows it."""

from dataclasses import dataclass

from curtail_pipeline.scheduling.rollout import Course, Standing
from curtail_pipeline.scheduling.stays import Plan, Stay
from curtail_pipeline.scheduling.timing import step_us
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.times import FOREVER, duration_us, to_us

PERFECT_WALKS, FORECAST_WALKS = 4_500, 20
"""Plans that are tried beyond the price grid: once per job where the forecast is perfect, else at each new value."""


@dataclass(frozen=True)
class Committed:
    """A plan in force."""

    made: int
    plan: Plan
    course: Course
    dearest: float | None
    """The highest value of the signal at which it trains; None when not even all hours suffice."""
    done: int
    """Steps that were done when it was made, less those of the round then in progress that its course counts."""

    def wants(self, i: int, us: int) -> tuple[bool, bool]:
        """Whether the site should train (or be starting up to train), and whether it should be up."""
        for stay in self.plan[i]:
            if stay.up <= us < stay.down:
                starting = us < stay.ready
                return starting or any(low <= us < high for low, high in stay.train), True
        return False, False

    def next_event(self, us: int) -> int:
        """The next instant at which it tells some site something else."""
        return min(
            (
                at
                for stays in self.plan
                for stay in stays
                if stay.down > us
                for at in (stay.up, stay.ready, stay.down, *(edge for span in stay.train for edge in span))
                if at > us
            ),
            default=FOREVER,
        )

    def is_followed(self, view: View, us: int, job: Job) -> bool:
        """Whether the job stands where the plan has it, but for steps in progress."""
        ahead = job.steps_done - self.done
        for i, site in enumerate(view.sites):
            step = step_us(site)
            ahead -= sum(min(n, max(0, us - first) // step) for first, n in self.course.training[i] if first < us)
            state = job.previous.get(site.name)
            was_up = state is not None and state.state != "off"
            if was_up not in (self.wants(i, us)[1], self.wants(i, us - 1)[1]):
                return False
        return abs(ahead) <= len(view.sites)


def standing_of(view: View, us: int, job: Job) -> tuple[Standing, list[Stay | None]]:
    """Where a plan made at `us` goes on from: the round in progress, and the sites that are up."""
    started = None if job.round_started is None else to_us(job.round_started)
    members: list[int] = []
    up: list[Stay | None] = []
    for i, site in enumerate(view.sites):
        state = job.previous.get(site.name)
        if state is None or state.state == "off":
            up.append(None)
            continue
        since = to_us(state.since)
        ready = since if state.ready is None else to_us(state.ready)
        trains = state.state == "train"
        overheads = view.experiment.overheads_of(site)
        begun = min(ready - duration_us(overheads.provisioning_s) - duration_us(overheads.connect_s), us)
        up.append(Stay(begun, ready, FOREVER, ((since, FOREVER),) if trains else ()))
        if trains and started is not None and since <= started:
            members.append(i)
    return Standing(us, job.steps_done, started if members else None, tuple(members)), up
