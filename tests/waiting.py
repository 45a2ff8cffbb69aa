"""Waiting for a condition with a deadline, and this process' children, which may be other tests' as well."""

import time
from collections.abc import Callable
from typing import TypeVar

import psutil

T = TypeVar("T")
LONGEST_PAUSE_S = 0.25


def wait_until(condition: Callable[[], T], deadline_s: float = 120.0, what: str = "a condition") -> T:
    """The first true value of a condition; fails when there is none in time. Asks less often the longer it waits."""
    deadline, pause_s = time.monotonic() + deadline_s, 0.02
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s in vain for {what}"
        time.sleep(pause_s)
        pause_s = min(LONGEST_PAUSE_S, 1.1 * pause_s)


def children(word: str) -> list[psutil.Process]:
    """Living children of this process that have it in their command line."""
    found = []
    for child in psutil.Process().children():
        try:
            if any(word in part for part in child.cmdline()):
                found.append(child)
        except psutil.Error:
            pass  # it has ended
    return found
