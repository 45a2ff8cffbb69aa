"""Who watches the supervisor: whoever uses its federation, since a stopped one starts nothing again."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from curtail_pipeline.flower.federation_state import FederationState
from curtail_pipeline.flower.hangs import ASLEEP_S, HANGS_S, is_stopped


@contextmanager
def watched(state: Callable[[], FederationState], limit_s: float) -> Iterator[None]:
    """While inside: a supervisor that has been stopped for so long is killed, and its federation with it.

    Whoever needs one then finds that it is down, and starts another.
    """
    over = threading.Event()
    thread = threading.Thread(target=_watch, args=(state, limit_s, over), name="supervisor-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _watch(state: Callable[[], FederationState], limit_s: float, over: threading.Event) -> None:
    since: tuple[int, float] | None = None
    looked = time.monotonic()
    while not over.wait(HANGS_S):
        now, pid = time.monotonic(), state().pid
        if not pid or not is_stopped(pid):
            since = None
        elif since is None or since[0] != pid or now - looked > ASLEEP_S:  # stopped itself, with all of them perhaps
            since = pid, now
        elif now - since[1] > limit_s:
            print(f"the supervisor {pid} is killed: it has been stopped for {now - since[1]:.0f} s", file=sys.stderr)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        looked = now
