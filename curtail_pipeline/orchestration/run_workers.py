"""Run workers of this host: which of them are gone while their run still counts as running.

Dagster's default launcher makes a run worker a child of the code server, `WarmLauncher` one of the daemon. Neither can
be asked whether it lives: a killed one leaves its run STARTED for ever, and with it the checkpoint's slot. What the
worker said of itself when it started tells its process. Other launchers are watched by Dagster's own run monitoring.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import dagster as dg
import psutil
from dagster._core.launcher import DefaultRunLauncher

LAUNCH_TIMEOUT = timedelta(seconds=50)
"""Within which a launched run's worker says that it has started, where nobody has said who starts it. With the 10 s
between two ticks of the reaper, a start that was killed is noticed within 60 s."""
SLOWEST_START = timedelta(minutes=10)
"""The same while the process that starts it lives: 5 to 15 s on two busy cores; 47 s, and once more than 50, on two
that many processes waited for."""
STARTER = "A run worker is started by process"
"""What `WarmLauncher` says first of all."""
MOST_RUNS = 100
"""Runs looked at in one tick: far above what an instance runs at once."""
WATCHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
WORKER = "curtail_pipeline.orchestration.run_worker"
"""The module that is a worker which `WarmLauncher` has started."""
_SLACK_S = 2.0
"""By which the clocks of the kernel and of the log may differ."""
_BOOTED = psutil.boot_time()
"""By the clock when this process began."""


@dataclass(frozen=True)
class Dead:
    """A run whose worker is gone."""

    run: dg.DagsterRun
    reason: str


def dead_runs(instance: dg.DagsterInstance, now: datetime) -> list[Dead]:
    """Runs whose worker on this host is gone. Looked at again before judging: a worker ends its run before itself."""
    if not isinstance(instance.run_launcher, DefaultRunLauncher):
        return []
    found = []
    for record in instance.get_run_records(dg.RunsFilter(statuses=WATCHED), limit=MOST_RUNS):
        reason = _why_dead(instance, record, now)
        if reason is None:
            continue
        run = instance.get_run_by_id(record.dagster_run.run_id)
        if run is not None and run.status in WATCHED:
            found.append(Dead(run, reason))
    return found


def end_dead(instance: dg.DagsterInstance, now: datetime) -> list[Dead]:
    """End the runs whose worker is gone: failed, or cancelled where that was asked for."""
    dead = dead_runs(instance, now)
    for each in dead:
        if each.run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(each.run, each.reason)
        else:
            instance.report_run_failed(each.run, each.reason)
    return dead


def end_unstarted(instance: dg.DagsterInstance, run_id: str, pid: int, number: int) -> None:
    """End a run whose worker was killed before it said that it has started."""
    run = instance.get_run_by_id(run_id)
    if run is None or run.is_finished or worker_of(instance, run_id) is not None:
        return
    reason = f"the run worker (pid {pid}) was ended by signal {number} before it began"
    if run.status == dg.DagsterRunStatus.CANCELING:
        instance.report_run_canceled(run, reason)
    else:
        instance.report_run_failed(run, reason)


def _why_dead(instance: dg.DagsterInstance, record: dg.RunRecord, now: datetime) -> str | None:
    started = worker_of(instance, record.dagster_run.run_id)
    if started is not None:
        pid, since = started
        if is_alive(pid, since):
            return None
        return f"the run worker (pid {pid}) is gone: it was killed, or its machine was"
    if record.dagster_run.status == dg.DagsterRunStatus.STARTED:
        return None
    starter = _said_of(instance, record.dagster_run.run_id, STARTER)
    if starter is not None and not is_alive(*starter):
        return (
            f"no run worker has started: what starts it (pid {starter[0]}) is gone: it was killed, or its machine was"
        )
    waiting = now - record.update_timestamp.replace(tzinfo=UTC)
    if waiting > (LAUNCH_TIMEOUT if starter is None else SLOWEST_START):
        return (
            f"no run worker has started in {waiting.total_seconds():.0f} s: "
            "what starts it, the daemon or the code server, was killed, or the machine has too much to do"
        )
    return None


def worker_of(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """Process id of a run's worker, and when it said so (seconds since 1970)."""
    return _said_of(instance, run_id, "Started process for run")


def _said_of(instance: dg.DagsterInstance, run_id: str, words: str) -> tuple[int, float] | None:
    """The process that the run's last event of these words names, and when."""
    records = instance.get_records_for_run(run_id, of_type=dg.DagsterEventType.ENGINE_EVENT).records
    for record in reversed(records):
        event = record.event_log_entry.dagster_event
        if event is None or not (event.message or "").startswith(words):
            continue
        pid = event.engine_event_data.metadata.get("pid")
        if pid is not None:
            return int(str(pid.value)), record.event_log_entry.timestamp
    return None


def is_alive(pid: int, since: float) -> bool:
    """Whether that process still runs: not another one that was given its number, and no zombie.

    A clock that was set ahead moves the time at which all processes seem to have started. By how much it was since this
    process began the machine's own start tells; for what was before that, a worker's command.
    """
    try:
        process = psutil.Process(pid)
        ahead = max(0.0, psutil.boot_time() - _BOOTED)
        its_own = process.create_time() <= since + _SLACK_S + ahead or WORKER in process.cmdline()
        return its_own and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
