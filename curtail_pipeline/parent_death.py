"""What a process is sent when its parent ends, however that happens."""

import ctypes
import signal
import sys

PR_SET_PDEATHSIG = 1


def sent_at_parents_end(number: signal.Signals) -> None:
    """Ask the kernel (Linux) to send it to this process when the *thread* that started this process ends.

    SIGCONT is for a process that sees the end by itself: where it was stopped, it would see nothing and stay for ever.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)
