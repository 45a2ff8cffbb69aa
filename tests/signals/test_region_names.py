"""A region is one however its name is typed."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.files import FileProvider

SAME = [
    ("Île-de-France", unicodedata.normalize("NFD", "Île-de-France")),
    ("New York", "New\u00a0York"),
    ("R", "\u200bR"),
    ("R", "\ufeffR "),
    ("N  Y", "N Y"),
]


def opened(path: Path, text: str, **given: Any) -> FileProvider:
    path.write_text(text)
    return FileProvider(FileTraces(path=str(path), **given))


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_that_look_alike_are_one_region(tmp_path: Path, one: str, other: str) -> None:
    rows = [f"2024-04-01T{hour:02}:00Z,{{}}{400 + hour}" for hour in range(24)]
    wide = opened(tmp_path / "t.csv", "\n".join([f"time,{other}", *(row.format("") for row in rows)]))
    content = {"name": "x", "traces": {"provider": "file", "path": "t.csv"}, "job": {"steps": 500}}
    site = {"name": "s", "region": one, "training_kw": 1.0, "idle_kw": 0.1, "steps_per_s": 1.0}
    run = parse_experiment(content | {"sites": [site], "rules": {one: {"enter": 100}}}, "x")
    assert wide.regions() == [run.sites[0].region] == list(run.rules)
    mixed = [row.format(f"{(one, other)[i % 2]},") for i, row in enumerate(rows)]
    long = opened(tmp_path / "t.csv", "\n".join(["time,region,value", *mixed]))
    assert long.regions() == wide.regions() and long.kinds(long.regions()[0]) == ["marginal_intensity"]
    named = opened(
        tmp_path / "t.csv", "\n".join([f"time,{other}", *(row.format("") for row in rows)]), columns={one: "A"}
    )
    assert named.regions() == ["A"]


def test_regions_that_differ_in_case_are_refused(tmp_path: Path) -> None:
    rows = [f"2024-04-01T{hour:02}:00Z,{'SA1' if hour % 2 else 'sa1'},{400 + hour}" for hour in range(24)]
    text = "\n".join(["time,region,value", *rows])
    with pytest.raises(TraceError, match=r"regions 'sa1' and 'SA1' differ only in case; .*{SA1: sa1}"):
        opened(tmp_path / "t.csv", text).regions()
    assert opened(tmp_path / "t.csv", text, columns={"SA1": "sa1"}).regions() == ["sa1"]
