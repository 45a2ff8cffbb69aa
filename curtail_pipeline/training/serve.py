"""The resident trainer of a site: one process per site that stays alive between rounds.

    python -m curtail_pipeline.training.serve --site S --store ROOT --endpoint FILE [--linked] [--parent-pid N]

HTTP on a free loopback port; when it can take orders it writes FILE (`trainer_api.Endpoint`), readable by its owner
only. Every step is a line of JSON (`metrics.StepMetrics`) in FILE with the ending `.steps.jsonl`.

It shows life in `agents/<site>.json` in the store every 2 s, and ends when its parent ends, however that happens.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from curtail_pipeline.federation.trainer_api import Endpoint
from curtail_pipeline.garbage import seldom_collected
from curtail_pipeline.parent_death import sent_at_parents_end
from curtail_pipeline.storage.atomic import write_whole

if TYPE_CHECKING:
    from filelock import FileLock

    from curtail_pipeline.storage.store import Store

log = logging.getLogger("curtail.trainer")

LONGEST_ENDING_S = 60.0


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="curtail_pipeline.training.serve", description="resident trainer of a site")
    parser.add_argument("--site", required=True)
    parser.add_argument("--store", required=True, help="a folder, or s3://bucket/prefix")
    parser.add_argument("--endpoint", required=True, type=Path, help="file to write port, pid and token to when ready")
    parser.add_argument("--experiment", default="experiment.json", help="store key of the experiment")
    parser.add_argument("--linked", action="store_true", help="the store is the site's own; orders bring all else")
    parser.add_argument("--parent-pid", type=int, default=None, help="end when this process ends")
    return parser.parse_args(argv)


def follow_parent(parent: int, ended: threading.Event) -> None:
    """Set `ended` once the process `parent` is gone."""
    import psutil

    def poll() -> None:
        try:
            process = psutil.Process(parent)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                if ended.wait(0.5):
                    return
        except psutil.NoSuchProcess:
            pass  # gone already
        log.info("parent %d is gone", parent)
        ended.set()

    def on_parent_death(_signal: int, _frame: FrameType | None) -> None:
        # a thread of its may have ended; only the process counts
        if os.getppid() != parent:
            ended.set()

    signal.signal(signal.SIGCONT, on_parent_death)
    if os.getppid() == parent:
        sent_at_parents_end(signal.SIGCONT)
    threading.Thread(target=poll, name="parent", daemon=True).start()


def _bound_ending(ended: threading.Event) -> None:
    """End the process for good when the step in progress takes too long to end."""

    def wait() -> None:
        ended.wait()
        time.sleep(LONGEST_ENDING_S)
        log.error("still not ended %.0f s after it was asked to", LONGEST_ENDING_S)
        os._exit(1)

    threading.Thread(target=wait, name="ending", daemon=True).start()


def _write_endpoint(path: Path, endpoint: Endpoint) -> None:
    write_whole(path, endpoint.model_dump_json().encode(), mode=0o600)


def start_log(site: str) -> None:
    """To standard error; of libraries warnings alone: their requests name pre-signed addresses, which are secrets."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s {site} %(levelname)s %(message)s")
    for name in ("httpx", "httpcore", "boto3", "botocore"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _lock(store: "Store", site: str) -> "FileLock":
    """The right to be the site's trainer on this machine.

    Raises:
        TrainingError: another process has it.
    """
    from filelock import FileLock, Timeout

    from curtail_pipeline.errors import TrainingError

    path = store.here(f"agents/.{site}.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise TrainingError(
            f"site {site} already has a live trainer on the store {store.uri}; use it, or stop it first "
            "(`curtail federation down`)"
        ) from None
    return lock


def _end_of_all(parent: int | None) -> threading.Event:
    """What is set when this process is to end, as it then does within `LONGEST_ENDING_S`."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    _bound_ending(ended)
    if parent is not None:
        follow_parent(parent, ended)
    return ended


def main(argv: list[str] | None = None) -> int:
    """Serve until shut down; exit code 0, or 1 with one line on stderr."""
    arguments = _arguments(argv)
    start_log(arguments.site)
    ended = _end_of_all(arguments.parent_pid)

    from curtail_pipeline.errors import CurtailError
    from curtail_pipeline.settings.experiment import parse_experiment
    from curtail_pipeline.storage.stores import open_store

    try:
        store, experiment = open_store(arguments.store), None
        if not arguments.linked:
            experiment = parse_experiment(store.read_json(arguments.experiment), arguments.experiment)
            threads = str(experiment.site(arguments.site).threads)
            # Libraries read their thread counts when they are imported.
            os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = threads
        lock = _lock(store, arguments.site)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        with seldom_collected():
            preload()

        import torch
        from transformers import NanoChatForCausalLM

        torch.set_num_interop_threads(1)

        from curtail_pipeline.emissions.meter import make_meter
        from curtail_pipeline.training.dashboards import reporter_of
        from curtail_pipeline.training.heartbeat import HEARTBEAT_S, HeartbeatWriter
        from curtail_pipeline.training.linked_trainer import LinkedTrainer
        from curtail_pipeline.training.order_queue import OrderQueue
        from curtail_pipeline.training.order_server import OrderServer
        from curtail_pipeline.training.trainer import SiteTrainer
        from curtail_pipeline.training.trains import Trains

        linked, reporter = LinkedTrainer(store, arguments.site, arguments.endpoint), None
        trainer: Trains = linked
        if experiment is not None:
            site = experiment.site(arguments.site)
            meter = make_meter(site, os.cpu_count() or 1)
            reporter = reporter_of(store, site, experiment, meter, arguments.endpoint)
            trainer = own = SiteTrainer(store, site, experiment, meter=meter)
            own.prepare()
        log.info("%s, torch %s", NanoChatForCausalLM.__name__, torch.__version__)  # loading it takes seconds
        orders = OrderQueue(trainer, store, ended, on_step=reporter or linked.report)
        signs = open_store(arguments.store, patience_s=HEARTBEAT_S)
        server, heartbeat = OrderServer(orders), HeartbeatWriter(signs, orders)
    except CurtailError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        server.start()
        heartbeat.start()
        _write_endpoint(arguments.endpoint, Endpoint(port=server.port, pid=os.getpid(), token=server.token))
        log.info("ready on port %d", server.port)
        orders.work()
    finally:
        arguments.endpoint.unlink(missing_ok=True)
        server.close()
        trainer.close()
        if reporter is not None:
            reporter.close()
        heartbeat.close()
        lock.release()
    log.info("ended")
    return 0


def preload() -> None:
    """Import what takes a trainer most of its start: 3.6 s of CPU (torch 2.13, transformers 5). Starts no thread."""
    from transformers import NanoChatForCausalLM  # noqa: F401

    import curtail_pipeline.training.linked_trainer
    import curtail_pipeline.training.order_server
    import curtail_pipeline.training.trainer  # noqa: F401


def run(argv: list[str] | None = None) -> NoReturn:
    """Serve as `main` does, and end the process with its exit code."""
    code = main(argv)
    logging.shutdown()
    sys.stderr.flush()
    # Request threads may still wait on sockets; nothing of theirs is worth waiting for.
    os._exit(code)


if __name__ == "__main__":
    run()
