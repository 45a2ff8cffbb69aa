"""Dagster's daemon, with a second between two rounds of its sensors, and no queue for a live segment.

Dagster 1.13 sleeps five seconds there whatever a sensor's interval is, which is most of the pause between two segments.
"""

from dagster._daemon import sensor
from dagster._daemon.cli import cli

from curtail_pipeline.orchestration.run_queue import SiteQueue

LOOP_S = 1
assert sensor.MIN_INTERVAL_LOOP_TIME >= LOOP_S, "Dagster's sensor loop is as fast by itself; run its own daemon"
sensor.MIN_INTERVAL_LOOP_TIME = LOOP_S
SiteQueue.starts_segments = True

if __name__ == "__main__":
    cli(prog_name="dagster-daemon")
