"""`curtail signals list` and `signals check`: a newcomer's first commands with a new account."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from micro import EXPERIMENT, write_trace
from signals_fake_api import Answer, FakeApi, Request, serve

from curtail_pipeline.times import parse_utc

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of typer's own use of click


def invoke(*words: str, **environ: str) -> Any:
    from typer.testing import CliRunner

    from curtail_pipeline.cli.main import app

    return CliRunner().invoke(app, ["signals", *words], env={"COLUMNS": "200", **environ})


def test_the_list_names_every_source_and_what_it_needs() -> None:
    from curtail_pipeline.settings.trace_settings import CombinedTraces, SingleSource

    found = json.loads(invoke("list", "--json").output.splitlines()[-1])["sources"]
    known = [source.model_fields["provider"].default for source in SingleSource.__args__[0].__args__]
    assert [source["provider"] for source in found] == [*known, CombinedTraces.model_fields["provider"].default]
    windows = {source["provider"]: source["defines_windows"] for source in found}
    assert windows["watttime"] and not windows["electricity_maps"]
    shown = invoke("list").output
    assert "WATTTIME_USER and WATTTIME_PASSWORD" in shown and "accounting only" in shown


def answer(request: Request) -> Answer:
    if request.path == "/login":
        return Answer({"token": "t"})
    if request.path == "/v3/historical" and request.params["region"] == "CAISO_NORTH":
        start = parse_utc(request.params["start"]) + timedelta(hours=1)
        points = [{"point_time": f"{start:%Y-%m-%dT%H}:{m:02}:00Z", "value": 500 + m} for m in range(0, 60, 5)]
        return Answer({"data": points, "meta": {"units": "lbs_co2_per_mwh", "data_point_period_seconds": 300}})
    if request.path == "/v3/forecast":
        return Answer({"data": [], "meta": {"units": "lbs_co2_per_mwh"}})
    return Answer({"error": "Invalid scope."}, 403)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serve(answer) as fake:
        yield fake


def written(tmp_path: Path, sources: list[dict[str, Any]], *regions: str) -> str:
    sites = [{**EXPERIMENT["sites"][0], "name": name, "region": name} for name in regions]
    traces = {"provider": "combined", "sources": sources}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump({**EXPERIMENT, "sites": sites, "traces": traces}))
    return str(tmp_path / "x.yaml")


def test_check_asks_each_source_for_a_day_and_prints_what_came(tmp_path: Path, api: FakeApi) -> None:
    sources = [
        {"provider": "file", "path": str(write_trace(tmp_path / "t.csv"))},
        {"provider": "watttime", "base_url": api.url},
    ]
    experiment = written(tmp_path, sources, "NORTH", "CAISO_NORTH")
    login = {"WATTTIME_USER": "ann", "WATTTIME_PASSWORD": "x"}
    done = invoke("check", "-e", experiment, "--json", **login)
    answers = json.loads(done.stdout.splitlines()[-1])["answers"]
    came = {(a["provider"], a["region"], a["kind"]): a for a in answers}
    north = came["file", "NORTH", "marginal_intensity"]
    assert (north["values"], north["missing"], north["cadence_s"], north["low"], north["high"]) == (48, 0, 300, 20, 500)
    live = came["watttime", "CAISO_NORTH", "marginal_intensity"]
    assert live["values"] == 12 and live["low"] == pytest.approx(500 * 0.45359237) and live["error"] is None
    # A region that the plan does not cover costs that line, and the exit code.
    assert "plan does not cover co2_moer of region 'NORTH'" in came["watttime", "NORTH", "marginal_intensity"]["error"]
    assert done.exit_code == 1
    shown = invoke("check", "-e", written(tmp_path, sources[:1], "NORTH"))
    assert shown.exit_code == 0 and "NORTH" in shown.output and "300 s" in shown.output


def test_check_without_an_account_says_what_to_set(tmp_path: Path, api: FakeApi) -> None:
    experiment = written(tmp_path, [{"provider": "watttime", "base_url": api.url}], "CAISO_NORTH")
    done = invoke("check", "-e", experiment, WATTTIME_USER="", WATTTIME_PASSWORD="", WATTTIME_USERNAME="")
    assert done.exit_code == 1 and "set WATTTIME_USER and WATTTIME_PASSWORD in the environment" in done.output
    done = invoke("check", "-e", written(tmp_path, [{"provider": "file", "path": str(tmp_path / "no.csv")}], "A"))
    assert done.exit_code == 1 and "no trace file" in done.output
