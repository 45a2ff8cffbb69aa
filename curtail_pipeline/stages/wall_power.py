"""Power of live and replayed time, from what was ordered and what the attempts at checkpoints left in the store.

Evaluation runs beside the sites, which are at idle power through it; the controller's own machine is no site and is not
counted.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from curtail_pipeline.emissions.grams import PowerInterval
from curtail_pipeline.federation.orders import JournalLine, Plan, Result
from curtail_pipeline.federation.plan import plan_key, planned_attempts, read_journal, scratch_of
from curtail_pipeline.federation.server_life import ServerLife, failure_key, life_key
from curtail_pipeline.scheduling.provisioned_time import Ordered, Work, provisioned_power, read_ordered
from curtail_pipeline.settings.sites import PowerState
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import following
from curtail_pipeline.storage.clock import ReplayClock
from curtail_pipeline.storage.store import Store
from curtail_pipeline.times import seconds, utc_now

ToClock = Callable[[datetime], datetime]
"""From wall time to the experiment's."""

WAITED_FOR = timedelta(hours=1)
"""How long a value of the signal may still be on its way: what was drawn since the newest one is booked with it."""


def clock_of_project(project: Project) -> ToClock:
    clock = project.clock
    return clock.to_virtual if isinstance(clock, ReplayClock) else (lambda wall: wall)


def wall_time(
    project: Project,
    members: Sequence[str],
    journal: Sequence[JournalLine],
    began: datetime,
    to_clock: ToClock = lambda wall: wall,
    *,
    since: datetime | None = None,
    others: Sequence[Work] = (),
) -> tuple[datetime, datetime, list[PowerInterval]]:
    """Start and end of a segment that ends now, and its power.

    Args:
        began: when its caller began to follow it; the first round was earlier where another caller was killed.
        since: the parent's end, by the experiment's clock. With it the power is that of all sites since then, the pause
            included; without it that of the members from the start on, whatever was ordered.
        others: what other attempts at it did.
    """
    ended = utc_now()
    began = min([began, *(line.done.start for line in journal)])
    work = [*others, *attempt_work(journal, members, began, ended, ended, to_clock, counts=True)]
    start, end = to_clock(began), to_clock(ended)
    ordered = [] if since is None else read_ordered(project.store, since, end)
    return start, end, _drawn(project, ordered, work, start if since is None else since, end)


def _drawn(
    project: Project, ordered: Sequence[Ordered], work: Sequence[Work], start: datetime, end: datetime
) -> list[PowerInterval]:
    sites = [(site, project.experiment.overheads_of(site)) for site in project.experiment.sites]
    return list(provisioned_power(sites, ordered, work, start, end))


def other_attempts(project: Project, key: str, but: str = "") -> list[Work]:
    """What attempts at a checkpoint did that came to nothing; the one whose scratch folder is `but` did not."""
    folders = [scratch_of(key, number) for number in planned_attempts(project.store, key)]
    to_clock = clock_of_project(project)
    return [part for folder in folders if folder != but for part in _attempt(project.store, folder, to_clock)]


def _attempt(store: Store, folder: str, to_clock: ToClock, *, running: bool = False) -> list[Work]:
    plan, journal = store.read_record(plan_key(folder), Plan), read_journal(store, folder)
    if plan.written is None:
        return []
    alive = store.read_record(life_key(folder), ServerLife).at if store.exists(life_key(folder)) else plan.written
    ended = max([plan.written, alive, *(line.done.end for line in journal)])
    last = ended if running else max([plan.written, *(line.done.end for line in journal)])
    return list(attempt_work(journal, plan.members, plan.written, last, ended, to_clock, counts=running))


def attempt_work(
    journal: Sequence[JournalLine],
    members: Sequence[str],
    began: datetime,
    known: datetime,
    ended: datetime,
    to_clock: ToClock,
    *,
    counts: bool,
) -> Iterator[Work]:
    """What an attempt's members did: a site trains from a round's start for the seconds that its trainer reports.

    One that was lost is taken to have trained until its round ended, and so are all after the last round that is known
    of an attempt that broke off.

    Args:
        known: until when the attempt can be told; what follows came to nothing.
        counts: its rounds count, if their updates were accepted.
    """

    def work(site: str, state: PowerState, start: datetime, end: datetime, kw: float | None = None) -> Work:
        first, last = to_clock(start), to_clock(min(end, ended))
        return Work(site, state, first, last, kw if last - first == end - start else None)  # a second is a second

    for site in members:
        yield work(site, "idle", began, ended)
        yield work(site, "failed", known, ended)
        for line in journal:
            if site not in line.orders:
                continue
            first, last = line.done.start, line.done.end
            if site in line.results:
                state: PowerState = "training" if counts and site in line.done.steps else "failed"
                result = line.results[site]
                yield work(site, state, first, first + seconds(result.seconds), measured_kw(result))
            elif site in line.done.lost:
                yield work(site, "failed", first, last)
            yield work(site, "transfer", first, last)


def measured_kw(result: Result) -> float | None:
    """IT power of a round's steps by the site's own counters; None where it has none."""
    if result.drawn is None or not result.seconds:
        return None
    return result.drawn.kwh / (result.seconds / 3_600)


def between_checkpoints(project: Project, known_until: datetime) -> tuple[datetime, list[PowerInterval]]:
    """Until when the time after the last checkpoint is booked, and the power of all sites in it.

    Args:
        known_until: end of the newest value of the signal.
    """
    parent, store, to_clock = project.parent, project.store, clock_of_project(project)
    end = project.clock.now()
    if project.span is not None:
        end = min(end, project.span[1])
    if end - WAITED_FOR < known_until:
        end = min(end, known_until)
    key = following(parent.key)
    numbers = planned_attempts(store, key)
    last = scratch_of(key, numbers[-1]) if numbers else ""
    work = other_attempts(project, key, but=last)
    if last:
        work += _attempt(store, last, to_clock, running=not store.exists(failure_key(last)))
    return end, _drawn(project, read_ordered(store, parent.end, end), work, parent.end, end) if end > parent.end else []
