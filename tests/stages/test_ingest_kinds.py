"""What is stored of a region beside the signals of its windows: all that grams and the report are counted by."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from micro import CURTAILED, EXPERIMENT, HOURS, START, signal

from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.stages.ingest import check_project, ingest_day
from curtail_pipeline.stages.project import Project

KINDS = {
    "price": lambda minute: -5.0 if signal("SOUTH", minute) < 100 else 60.0 + minute / 100,
    "average_intensity": lambda minute: 250.0 + minute / 10,
    "marginal_intensity": lambda minute: signal("SOUTH", minute) + minute / 100,
}


def opened(folder: Path, order: list[str], rule: str, **values: Any) -> Project:
    rows = ["time,region,kind,value"]
    for minute in range(0, HOURS * 60, 5):
        stamp = (START + timedelta(minutes=minute)).isoformat()
        rows += [f"{stamp},SOUTH,{kind},{values.get(kind, KINDS[kind])(minute)}" for kind in order]
    (folder / "trace.csv").write_text("\n".join(rows))
    content = {
        **EXPERIMENT,
        "sites": [site for site in EXPERIMENT["sites"] if site["name"] == "SOUTH"],
        "traces": {"provider": "file", "path": str(folder / "trace.csv")},
        "rules": {"SOUTH": {"kind": rule}},
    }
    return Project.open(parse_experiment(content, "test"), "headless", folder / "home")


@pytest.mark.parametrize("rule", ["price", "marginal_intensity"])
@pytest.mark.parametrize("order", [list(KINDS), list(KINDS)[::-1]])
def test_all_that_grams_are_counted_by_is_stored_whatever_the_order(
    tmp_path: Path, rule: str, order: list[str]
) -> None:
    """Of a price and an average only the first of the file was: its energy had no accounting signal."""
    assert CURTAILED["SOUTH"]
    project = opened(tmp_path, order, rule)
    found = ingest_day(project, "SOUTH", project.days[0])
    assert set(found.table["kind"]) == set(KINDS) and not found.blocked
    assert found.table["value"].null_count() == 0 and "warnings" not in found.metadata


def test_what_windows_do_without_costs_no_region(tmp_path: Path) -> None:
    dirty = {"average_intensity": lambda minute: 5000.0 if minute == 60 else 250.0 + minute / 10}
    project = opened(tmp_path, list(KINDS), "price", **dirty)
    found = ingest_day(project, "SOUTH", project.days[0])
    assert not found.blocked and set(found.table["kind"]) == {"price", "marginal_intensity"}
    assert "average_intensity is left out: " in str(found.metadata["warnings"])
    with pytest.raises(Exception, match=r"1 values outside \[0, 2000\]"):
        check_project(project)
    holes = {"average_intensity": lambda minute: "" if minute > 60 else 250.0 + minute / 10}
    (tmp_path / "b").mkdir()
    project = opened(tmp_path / "b", list(KINDS), "price", **holes)
    found = ingest_day(project, "SOUTH", project.days[0])
    assert not found.blocked and set(found.table["kind"]) == set(KINDS)
