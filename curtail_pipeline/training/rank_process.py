"""A process that trains beside a site's trainer, on another device: it does what rank 0 tells it.

    python -m curtail_pipeline.training.rank_process --rank R --size N --device D --folder F

It says so when it can take commands (`rank_commands`), and ends with its standard input: the kernel closes that when
rank 0 ends, however that happens, and lets a process that was stopped go on to see it.
"""

import argparse
import logging
import os
import queue
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from curtail_pipeline.parent_death import sent_at_parents_end

if TYPE_CHECKING:
    from curtail_pipeline.training.learner import Learner
    from curtail_pipeline.training.rank_commands import Command
    from curtail_pipeline.training.ranks import Ranks

READY = "ready"
LONGEST_ENDING_S = 5.0
"""How long the work in hand may take to end once rank 0 is gone: it may wait for rank 0 itself."""


def _read_commands(lines: "queue.Queue[str]", gone: threading.Event, folder: Path) -> None:
    """Hand on what rank 0 says; an empty line once it is gone."""
    for line in sys.stdin:
        lines.put(line)
    gone.set()
    lines.put("")
    time.sleep(LONGEST_ENDING_S)
    _end(folder)


def _end(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # rank 0 does so too, if it can
    os._exit(0)


def _follow(learner: "Learner", command: "Command") -> None:
    from curtail_pipeline.training.learner import Diverged

    match command.does:
        case "warm_up":
            learner.warm_up()
        case "take_weights":
            learner.load_weights({}, "")
        case "give_weights":
            learner.weights()
        case "take_state":
            learner.load_state({}, "")
        case "give_state":
            learner.state()
        case "reset":
            learner.reset()
        case "step":
            with suppress(Diverged):  # rank 0 says so
                learner.step(None, command.multiplier, command.momentum)


def _work(ranks: "Ranks", lines: "queue.Queue[str]") -> None:
    """Do as told until rank 0 is gone."""
    from curtail_pipeline.training.devices import set_computing
    from curtail_pipeline.training.learner import make_learner
    from curtail_pipeline.training.presets import read_config
    from curtail_pipeline.training.rank_commands import Told

    learner: Learner | None = None
    while line := lines.get():
        command = Told.read(line, "what rank 0 says").command
        if command.does == "build":
            learner = None  # its memory counts as free
            set_computing(command.threads, command.settings)
            config = read_config(command.config.encode(), "the config of rank 0")
            learner = make_learner(config, command.settings, ranks, command.sharded)
        elif learner is None:
            raise RuntimeError(f"told to {command.does} before a model was built")
        else:
            _follow(learner, command)


def main() -> None:
    """Follow rank 0 until it is gone."""
    parser = argparse.ArgumentParser(prog="curtail_pipeline.training.rank_process", description=__doc__)
    parser.add_argument("--rank", required=True, type=int)
    parser.add_argument("--size", required=True, type=int, help="number of ranks")
    parser.add_argument("--device", required=True)
    parser.add_argument("--folder", required=True, type=Path, help="where the ranks meet")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format=f"%(asctime)s rank {arguments.rank} %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):  # meant for rank 0, which ends after its step
        signal.signal(number, signal.SIG_IGN)
    sent_at_parents_end(signal.SIGCONT)
    lines: queue.Queue[str] = queue.Queue()
    gone, folder = threading.Event(), arguments.folder
    threading.Thread(target=_read_commands, args=(lines, gone, folder), name="commands", daemon=True).start()

    import torch

    from curtail_pipeline.training.ranks import GroupRanks

    torch.set_num_interop_threads(1)
    print(READY, flush=True)
    try:
        ranks = GroupRanks(torch.device(arguments.device), arguments.rank, arguments.size, folder)
        _work(ranks, lines)
        ranks.close()
    except Exception:
        if not gone.wait(LONGEST_ENDING_S):  # else what failed is an exchange with rank 0
            raise
    _end(folder)


if __name__ == "__main__":
    main()
