"""A whole plan in one process, its sites one after the other: a replay that asks nothing of resident trainers.

    python -m curtail_pipeline.training.plan_runner --store ROOT --plan KEY [--parent-pid N]

Writes the plan's journal and outcome beside it. A round's result depends on its orders alone, so that the weights are
those of the resident trainers on the same hardware. It steps back for other processes (niceness), and ends with its
parent.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from curtail_pipeline.errors import CurtailError, TrainingError
from curtail_pipeline.federation.orders import Order, Plan
from curtail_pipeline.federation.rounds import run_plan
from curtail_pipeline.federation.transport import Failure, Reply
from curtail_pipeline.garbage import seldom_collected
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.storage.stores import open_store
from curtail_pipeline.training.serve import follow_parent

if TYPE_CHECKING:
    from curtail_pipeline.training.trainer import SiteTrainer

NICENESS = 10


class TrainersHere:
    """Orders are done by trainers of this process, in the poll after they were sent."""

    def __init__(self, trainer_of: "Callable[[str], SiteTrainer]", ended: threading.Event) -> None:
        self._trainer_of, self._ended = trainer_of, ended
        self._trainers: dict[str, SiteTrainer] = {}
        self._pending: list[tuple[str, Order]] = []

    def send(self, site: str, order: Order) -> None:
        self._pending.append((site, order))

    def poll(self) -> list[tuple[str, Reply]]:
        pending, self._pending = self._pending, []
        return [(site, self._train(site, order)) for site, order in pending]

    def _train(self, site: str, order: Order) -> Reply:
        for other in self._trainers.keys() - {site}:
            self._trainers[other].close()  # a process trains over one group of devices at a time
        if site not in self._trainers:
            self._trainers[site] = self._trainer_of(site)
        try:
            result = self._trainers[site].train(order, should_stop=self._ended.is_set)
            self._trainers[site].settle()  # no heartbeat would show that this process is storing what it has answered
        except CurtailError as error:
            return Failure(str(error))
        if self._ended.is_set():
            raise TrainingError(f"told to stop in round {order.round} of {order.key}")
        return result


def main(argv: list[str] | None = None) -> int:
    """Run the plan; exit code 0, or 1 with one line on stderr."""
    parser = argparse.ArgumentParser(prog="curtail_pipeline.training.plan_runner", description="runs a plan alone")
    parser.add_argument("--store", required=True, help="a folder, or s3://bucket/prefix")
    parser.add_argument("--plan", required=True, help="store key of the plan")
    parser.add_argument("--parent-pid", type=int, default=None, help="end when this process ends")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s")
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    if arguments.parent_pid is not None:
        follow_parent(arguments.parent_pid, ended)
    os.nice(NICENESS)
    try:
        store = open_store(arguments.store)
        plan = store.read_record(arguments.plan, Plan)
        experiment = parse_experiment(store.read_json(plan.experiment_uri), plan.experiment_uri)
        # Libraries read their thread counts when they are imported.
        threads = str(experiment.site(plan.members[0]).threads)
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = threads
        os.environ["TOKENIZERS_PARALLELISM"] = "false"

        with seldom_collected():
            import torch

            torch.set_num_interop_threads(1)

            from curtail_pipeline.training.trainer import SiteTrainer

        transport = TrainersHere(lambda site: SiteTrainer(store, site, experiment), ended)
        run_plan(transport, arguments.plan, store, limits=experiment.federation.limits)
    except CurtailError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
