"""Interrupts that are not lost: Python ignores an exception that a signal raises inside a finaliser."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

RESEND_S = 0.05
"""Long enough to be out of the finaliser."""


@contextmanager
def resending(*interrupts: type[BaseException]) -> Iterator[None]:
    """Within the block SIGTERM is sent again where Python had to ignore one of these exceptions.

    A handler runs wherever the main thread is, also in a `__del__` or a weak reference's callback. What it raises there
    is only printed, and the program would go on as if nobody had told it to stop.
    """
    before = sys.unraisablehook

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, interrupts):
            before(lost)
            return
        again = threading.Timer(RESEND_S, os.kill, (os.getpid(), signal.SIGTERM))
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
