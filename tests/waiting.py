"""Waiting for a condition with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], deadline_s: float = 120.0, what: str = "a condition") -> T:
    """The first true value of a condition; fails when there is none in time."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s in vain for {what}"
        time.sleep(0.05)
