"""Python's garbage collector while a process starts.

Importing torch, transformers, Dagster and Flower makes a million objects that stay. Python looks through the young ones
700 at a time, which is a seventh of the processor time that these imports take.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 10_000
"""Objects, about a MB; more gives nothing that can be measured."""


@contextmanager
def seldom_collected() -> Iterator[None]:
    """Within it young objects are looked through `YOUNG` at a time."""
    usual, *older = gc.get_threshold()
    gc.set_threshold(max(YOUNG, usual), *older)
    try:
        yield
    finally:
        gc.set_threshold(usual, *older)
