"""The headless run: virtual time that only work moves, on the same sensor, jobs and instance as the daemon.

Every decision is the membership sensor's; every segment is a run of the job it requests, executed in this process.
Between them the loop asks the timing model when the next thing happens and moves the clock there.
"""

import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import dagster as dg
import yaml

from curtail_pipeline.errors import CurtailError, FederationError
from curtail_pipeline.flower.standing import connect
from curtail_pipeline.orchestration.open_databases import check_databases, databases_open
from curtail_pipeline.orchestration.preparation import missing_parts
from curtail_pipeline.orchestration.resources import serve_opened
from curtail_pipeline.orchestration.run_queue import limit_pools, pools_of_all
from curtail_pipeline.orchestration.runs import PREPARE_JOB, end_abandoned
from curtail_pipeline.scheduling.timing import Finished, Pause, SegmentPlan, advance
from curtail_pipeline.scheduling.view import Job, View
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.run_events import AttemptFailed, Committed, Paused, Progress, SegmentStarted
from curtail_pipeline.stages.tick import absences, remember, remembered
from curtail_pipeline.storage.clock import HeadlessClock
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.times import utc_now

MAX_ATTEMPTS = 3
"""Failed attempts in a row before a headless run gives up where no site is left that could go on; a daemon goes on with
a growing backoff."""
HOPEFUL = 3
"""Losses in a row after which virtual time is not held any more for a site that alone would train."""

INSTANCE_YAML = """\
run_launcher:
  module: curtail_pipeline.orchestration.warm_launcher
  class: WarmLauncher
run_coordinator:
  module: curtail_pipeline.orchestration.run_queue
  class: SiteQueue
  config:
    dequeue_interval_seconds: 1
telemetry:
  enabled: false
nux:
  enabled: false
concurrency:
  pools:
    granularity: run
  runs:
    max_concurrent_runs: 4
    tag_concurrency_limits:
      - key: curtail/checkpoint
        limit: 2
run_monitoring:
  enabled: true
  poll_interval_seconds: 30
  start_timeout_seconds: 60
  cancel_timeout_seconds: 180
  free_slots_after_run_end_seconds: 60
retention:
  sensor:
    purge_after_days: {skipped: 2, success: 30, failure: -1}
"""
"""Of two segments' runs one trains; the other evaluates what it has committed."""

INTERRUPTS: Final = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)
"""What a run raises when it is told to stop, by whichever handler is in place."""


def prepare_instance(project: Project) -> None:
    """Write the instance's configuration into the home, where nobody has written another.

    Of one that does not limit runs by pools it is said that two runs on demand may train at one site at once.
    """
    file = project.home.dagster / "dagster.yaml"
    if not file.exists():
        file.write_text(INSTANCE_YAML)
    elif not _limits_by_pools(file):
        print(
            f"curtail: warning: {file} has no `concurrency: {{pools: {{granularity: run}}}}`: runs on demand are not "
            "limited per site; add it, or delete the file and it is written anew",
            file=sys.stderr,
            flush=True,
        )


def _limits_by_pools(file: Path) -> bool:
    found = yaml.safe_load(file.read_text())
    for name in ("concurrency", "pools", "granularity"):
        found = found.get(name) if isinstance(found, dict) else None
    return found == "run"


@contextmanager
def open_instance(project: Project) -> Iterator[dg.DagsterInstance]:
    """The Dagster instance in the experiment's home, its databases open for all processes that write to them.

    Raises:
        StoreError: one of them is damaged.
    """
    prepare_instance(project)
    check_databases(project.home.dagster)
    os.environ["DAGSTER_HOME"] = str(project.home.dagster)
    with dg.DagsterInstance.from_config(str(project.home.dagster)) as instance, databases_open(instance):
        limit_pools(instance, pools_of_all(project.experiment))
        yield instance


class Headless:
    """Drives the code location in this process.

    Args:
        project: the one that the code location serves.
        definitions: the code location's, reporting progress to `observe`.
        sensor: its membership sensor.
        log_level: of Dagster's console log.
    """

    def __init__(
        self,
        project: Project,
        instance: dg.DagsterInstance,
        definitions: dg.Definitions,
        sensor: dg.SensorDefinition,
        observe: Progress,
        log_level: str = "ERROR",
    ) -> None:
        self.project, self.instance, self.observe = project, instance, observe
        self.defs, self.sensor, self.log_level = definitions, sensor, log_level
        self._cursor: str | None = None
        self._failed = 0
        """Attempts since the last commit."""
        serve_opened(project)

    def execute(
        self,
        job: str,
        partition: str | None = None,
        *,
        tags: dict[str, str] | None = None,
    ) -> None:
        """Run a job to its end on the instance; the first failed step's error is raised as it was."""
        self.defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            partition_key=partition,
            tags=tags,
            run_config={"loggers": {"console": {"config": {"log_level": self.log_level}}}},
        )

    def prepare(self) -> None:
        """Traces, windows, corpus and the initialised model: whatever of it is missing."""
        if missing_parts(self.project):
            self.execute(PREPARE_JOB)

    def report(self) -> None:
        """Materialise the emissions report."""
        self.execute("reporting")

    def tick(self) -> dg.RunRequest | None:
        """Evaluate the membership sensor once, as the daemon would."""
        pipeline = self.defs.resources["pipeline"] if self.defs.resources else None
        with dg.build_sensor_context(
            instance=self.instance, cursor=self._cursor, definitions=self.defs, resources={"pipeline": pipeline}
        ) as context:
            result = self.sensor(context)
        assert isinstance(result, dg.SensorResult)
        self._cursor = result.cursor
        for add in result.dynamic_partitions_requests or []:
            self.instance.add_dynamic_partitions("checkpoints", list(add.partition_keys))
        return result.run_requests[0] if result.run_requests else None

    def run(self) -> str:
        """Until the job or the clock ends; returns why it ended. What is committed already is not done again.

        Raises:
            CurtailError: `MAX_ATTEMPTS` attempts failed in a row and no site is left to go on with.
        """
        clock = self.project.clock
        assert isinstance(clock, HeadlessClock)
        end_abandoned(self.instance)
        self.prepare()
        view = self.project.view(clock.now())
        with ExitStack() as federation:
            connected = False
            while True:
                parent = self.project.parent
                # A run killed between a commit and the clock's move goes on behind what is committed.
                now = clock.advance_to(parent.end)
                job = self.project.job(parent, remembered(self.project))
                away = absences(self.project).away(utc_now())
                step = advance(view.without(away), self.project.experiment, now, job)
                if away and not isinstance(step, SegmentPlan) and self._wait_for(away, view, now, job):
                    continue
                if isinstance(step, Finished):
                    return step.reason
                if isinstance(step, Pause):
                    self._pause(step)
                    continue
                if not connected:  # a run that has nothing left to train starts no federation
                    federation.enter_context(connect(self.project.home, self.project.experiment))
                    connected = True
                self._segment(step)

    def _pause(self, pause: Pause) -> None:
        self.observe(Paused(pause.start, pause.end, pause.reason))
        remember(self.project, pause.sites, self.project.parent.key)
        clock = self.project.clock
        assert isinstance(clock, HeadlessClock)
        clock.advance_to(pause.end)

    def _wait_for(self, away: Mapping[str, str], view: View, now: datetime, job: Job) -> bool:
        """Hold virtual time for a site that was lost and would train now; false where that is hopeless or needless.

        Otherwise a site that is back in seconds would cost a whole window.
        """
        known = absences(self.project).sites
        hopeful = [known[site].due for site in away if known[site].times <= HOPEFUL]
        if not hopeful or not isinstance(advance(view, self.project.experiment, now, job), SegmentPlan):
            return False
        time.sleep(max(0.0, (min(hopeful) - utc_now()).total_seconds()))
        return True

    def _segment(self, plan: SegmentPlan) -> None:
        request = self.tick()
        if request is None or request.partition_key is None or request.job_name is None:
            raise FederationError(f"the membership sensor requested nothing at {plan.start}, but a segment is due")
        key = request.partition_key
        self.observe(SegmentStarted(key, plan.start, plan.members, plan.mode, len(plan.rounds)))
        try:
            self.execute(request.job_name, key, tags=dict(request.tags))
        except CurtailError as error:
            self._failed += 1
            self.observe(AttemptFailed(key, self._failed, str(error)))
            if self._failed >= MAX_ATTEMPTS and not self._others(plan.members):
                raise
            return
        if not self.project.checkpoints.exists(key):
            raise FederationError(f"{key} trained no step, which a plan has; {plan}")
        self._failed = 0
        manifest: Manifest = self.project.checkpoints.manifest(key)
        remember(self.project, plan.sites, manifest.key, ended=True)
        self.observe(Committed(manifest))

    def _others(self, tried: Collection[str]) -> bool:
        """Whether the failure is the tried sites' own, and there are sites besides that have not been lost."""
        lost = absences(self.project).sites.keys()
        return lost >= set(tried) and any(site.name not in lost for site in self.project.experiment.sites)
