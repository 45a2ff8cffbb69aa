"""Policies compared on many days by processes of their own."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curtail_pipeline.stages import compare_days


@pytest.mark.parametrize(
    ("cores", "days", "processes"), [(3, 90, 3), (64, 90, compare_days.MOST_PROCESSES), (64, 5, 5)]
)
def test_as_many_processes_as_cores_may_be_used_within_reason(
    monkeypatch: pytest.MonkeyPatch, cores: int, days: int, processes: int
) -> None:
    started: list[int] = []

    class Pool:
        def __init__(self, workers: int, **_: Any) -> None:
            started.append(workers)

        def __enter__(self) -> "Pool":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def map(self, work: object, items: Iterable[str]) -> Iterator[str]:
            return iter(items)

    monkeypatch.setattr(compare_days, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(compare_days, "usable_cores", lambda: cores)
    project: Any = SimpleNamespace(home=SimpleNamespace(root=Path("home")), clock_mode="replay")
    names = [f"day {number}" for number in range(days)]
    assert list(compare_days.compare_days(project, names, plot=False)) == names  # type: ignore[comparison-overlap]
    assert started == [processes]
