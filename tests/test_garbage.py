"""The collector is as it was once a process has started."""

import gc
from collections.abc import Iterator

import pytest

from curtail_pipeline.garbage import YOUNG, seldom_collected

USUAL = (700, 10, 10)


@pytest.fixture
def usual() -> Iterator[None]:
    """The threshold that Python begins with, which these tests have raised."""
    before = gc.get_threshold()
    gc.set_threshold(*USUAL)
    yield
    gc.set_threshold(*before)


@pytest.mark.usefixtures("usual")
def test_objects_are_looked_through_seldom_and_then_as_before() -> None:
    with pytest.raises(ImportError), seldom_collected():
        assert gc.get_threshold() == (YOUNG, *USUAL[1:])
        raise ImportError
    assert gc.get_threshold() == USUAL
