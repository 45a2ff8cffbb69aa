"""Cores that a process may use."""

import os
from pathlib import Path

import pytest

from curtail_pipeline.cores import usable_cores


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        (None, 6), ("max 100000\n", 6), ("200000 100000\n", 2), ("150000 100000\n", 2), ("10000 100000", 1),
        ("1600000 100000", 6),
    ],
)  # fmt: skip
def test_affinity_and_container_both_bind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, cores: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    file = tmp_path / "cpu.max"
    if limit is not None:
        file.write_text(limit)
    assert usable_cores(file) == cores
