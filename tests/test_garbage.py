"""The collector is as it was once a process has started."""

import gc

import pytest

from curtail_pipeline.garbage import YOUNG, seldom_collected


def test_objects_are_looked_through_seldom_and_then_as_before() -> None:
    before = gc.get_threshold()
    with pytest.raises(ImportError), seldom_collected():
        assert gc.get_threshold() == (max(YOUNG, before[0]), *before[1:])
        raise ImportError
    assert gc.get_threshold() == before
