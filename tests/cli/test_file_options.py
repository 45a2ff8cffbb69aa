"""One set of options for reading a trace file, with one meaning in `windows`, `simulate` and `run`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from micro import EXPERIMENT, curtail_here

from curtail_pipeline.cli.windows_of_file import windows_of_file
from curtail_pipeline.errors import SettingsError, TraceError
from curtail_pipeline.settings.experiment import load_experiment, parse_experiment, with_traces
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.checks import CHECKS
from curtail_pipeline.signals.whole_file import read_all
from curtail_pipeline.stages.ingest import check_project
from curtail_pipeline.stages.project import Project

DECLARED: dict[str, Any] = {
    "provider": "file", "path": "moer.csv", "unit": "lb/MWh", "timezone": "America/Los_Angeles", "interval": "end",
}  # fmt: skip
OPTIONS = ("unit", "kind", "timezone", "interval", "time-column", "time-format", "columns", "where", "cadence")
OPTIONS += ("combine", "missing", "set")


def test_another_file_is_read_as_the_declared_one_is(tmp_path: Path) -> None:
    declared = parse_experiment({**EXPERIMENT, "traces": DECLARED}, "x.yaml")
    traces = with_traces(declared, tmp_path / "t.csv").traces
    assert isinstance(traces, FileTraces)
    assert traces.model_dump(exclude_unset=True) == DECLARED | {"path": str(tmp_path / "t.csv")}
    given = with_traces(declared, tmp_path / "t.csv", {"kind": "price", "timezone": "UTC"}).traces
    assert isinstance(given, FileTraces)
    assert (given.kind, given.unit, given.timezone, given.interval) == ("price", None, "UTC", "end")
    combined = {"provider": "combined", "sources": [{"provider": "watttime"}, DECLARED]}
    both = with_traces(parse_experiment({**EXPERIMENT, "traces": combined}, "x.yaml"), tmp_path / "t.csv").traces
    assert isinstance(both, FileTraces) and both.unit == "lb/MWh"
    assert with_traces(load_experiment("laptop"), "t.csv").traces == FileTraces(path=str(Path("t.csv").resolve()))
    with pytest.raises(SettingsError, match="timezone"):
        with_traces(declared, "t.csv", {"timezone": 7})


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of typer's own use of click
def test_the_options_are_keys_of_the_traces_section() -> None:
    import typer

    from curtail_pipeline.cli.file_options import reading

    given = {"unit": None, "columns": ["RRP=NEM_SA", "R"], "where": ["A=0", "B=x=y"], "cadence": 300}
    assert reading(given) == {"columns": {"RRP": "NEM_SA", "R": "R"}, "where": {"A": "0", "B": "x=y"}, "cadence_s": 300}
    others = {"combine": "sum", "set": ["separator=;", "decimal=,", "measured=[zero, stuck]", "skip_lines=2"]}
    assert reading(others) == {
        "combine": "sum", "separator": ";", "decimal": ",", "measured": ["zero", "stuck"], "skip_lines": "2"
    }  # fmt: skip
    assert FileTraces.model_validate({"path": "x", **reading(others)}).skip_lines == 2
    for wrong in (
        {"set": ["path=y"]},
        {"unit": "MW", "set": ["unit=MW"]},
        {"set": ["unit"]},
    ):
        with pytest.raises(typer.BadParameter):
            reading(dict(wrong))
    for wrong in ({"where": ["A"]}, {"where": ["A="]}, {"columns": ["A=1", "A=2"]}):
        with pytest.raises(typer.BadParameter):
            reading(dict(wrong))


@pytest.mark.parametrize("command", ["windows", "simulate", "run"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_command_has_every_option(command: str) -> None:
    from typer.testing import CliRunner

    from curtail_pipeline.cli.main import app

    shown = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).output
    assert [option for option in OPTIONS if f"--{option}" not in shown] == []


def write(folder: Path) -> tuple[Path, Path]:
    """A market's export that only the options can read, and an experiment on one of its regions."""
    rows = [f"{hour},{flag},{5 if 10 <= hour < 12 and not flag else 600}" for hour in range(24) for flag in (0, 1)]
    lines = [f"x,04/01/2024 {row.split(',')[0]:0>2}:00,{row.split(',', 1)[1]}" for row in rows]
    (folder / "t.csv").write_text("\n".join(["id,stamp,INTERVENTION,RRP", *lines]) + "\n")
    site = {"name": "s", "region": "NEM_SA", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 1.0}
    policy = {"name": "threshold"}
    content = {**EXPERIMENT, "sites": [site], "policy": policy, "job": {"steps": 10**6}}
    content["traces"] = {"provider": "file", "path": "elsewhere.csv"}
    (folder / "x.yaml").write_text(yaml.safe_dump(content))
    return folder / "t.csv", folder / "x.yaml"


READ = [
    "--time-column",
    "stamp",
    "--time-format",
    "%m/%d/%Y %H:%M",
    "--timezone",
    "+10:00",
    "--kind",
    "marginal_intensity",
    "--unit",
    "g/kWh",
]
READ += ["--columns", "RRP=NEM_SA", "--where", "INTERVENTION=0", "--cadence", "3600", "--interval", "end"]


def test_windows_and_simulate_read_the_same_hours(tmp_path: Path) -> None:
    trace, experiment = write(tmp_path)
    words = ("windows", "--traces", str(trace), "-e", str(experiment), *READ, "--json")
    done = curtail_here(*words, home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [(w["start"], w["end"]) for w in found["windows"]] == [("2024-03-31T23:00:00Z", "2024-04-01T01:00:00Z")]
    words = ["simulate", "--traces", str(trace), "-e", str(experiment), *READ, "--json"]
    done = curtail_here(*words, home=tmp_path)
    assert done.returncode == 0, done.stderr
    simulated = json.loads(done.stdout.splitlines()[-1])
    assert 1.5 < simulated["site_hours"]["s"] <= 2
    assert simulated["checks"] == found["checks"]
    assert [check["name"] for check in found["checks"]] == list(CHECKS)
    assert all(set(check) == {"name", "passed", "description"} for check in found["checks"])


def test_every_command_refuses_what_the_asset_would_keep_out(tmp_path: Path) -> None:
    trace, experiment = write(tmp_path)
    trace.write_text(trace.read_text().replace(",600", ",0.6").replace(",5\n", ",0.005\n"))
    given = {"time_column": "stamp", "time_format": "%m/%d/%Y %H:%M", "columns": {"RRP": "NEM_SA"}}
    given |= {"where": {"INTERVENTION": "0"}, "kind": "marginal_intensity", "unit": "g/kWh"}
    loaded = load_experiment(experiment)
    commands: list[Callable[[], object]] = [
        lambda: windows_of_file(trace, loaded, **given),
        lambda: read_all(trace, loaded, given),
        lambda: check_project(Project.open(with_traces(loaded, trace, given), "headless", tmp_path / "home")),
    ]
    said = set()
    for command in commands:
        with pytest.raises(TraceError, match="declare unit: kg/kWh") as refused:
            command()
        said.add(str(refused.value))
    assert len(said) == 1
    words = ["--columns", "RRP=NEM_SA", "--where", "INTERVENTION=0", "--kind", "marginal_intensity"]
    words += ["--unit", "g/kWh", "--time-column", "stamp", "--time-format", given["time_format"]]
    done = curtail_here("run", "--traces", str(trace), "-e", str(experiment), *words, home=tmp_path / "run")
    assert done.returncode == 1 and said.pop() in done.stderr


def test_a_file_that_only_other_keys_can_read_needs_no_experiment(tmp_path: Path) -> None:
    """A German export of curtailed power by fuel, of which only intervals with curtailment are listed."""
    rows = [f"01.04.2024 {hour:02}:00;{fuel};1.000,5" for hour in (3, 4, 9) for fuel in ("Wind", "Solar")]
    (tmp_path / "t.csv").write_text(
        "\n".join(["Stand 2024", "Datum;Art;MW", "01.04.2024 00:00;Wind;-0,2", *rows]) + "\n"
    )
    words = ["--set", "separator=;", "--set", "decimal=,", "--set", "skip_lines=1", "--columns", "MW=DE"]
    words += ["--time-format", "%d.%m.%Y %H:%M", "--kind", "curtailed_power", "--missing", "zero"]
    words += ["--combine", "sum", "--policy", "threshold"]
    done = curtail_here("windows", "--traces", str(tmp_path / "t.csv"), *words, "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert [(w["start"], w["end"]) for w in found["windows"]] == [
        ("2024-04-01T03:00:00Z", "2024-04-01T05:00:00Z"), ("2024-04-01T09:00:00Z", None)
    ]  # fmt: skip
    assert found["rounded"] == 1
    done = curtail_here("windows", "--traces", str(tmp_path / "t.csv"), "--set", "separater=;", home=tmp_path)
    assert done.returncode == 1 and "unknown key 'separater'" in done.stderr


def test_run_opens_the_experiment_with_them(tmp_path: Path) -> None:
    trace, experiment = write(tmp_path)
    wrong = [*READ[:-1], "middle"]
    done = curtail_here("run", "--traces", str(trace), "-e", str(experiment), *wrong, home=tmp_path / "home")
    assert done.returncode == 1 and "interval: Input should be 'begin' or 'end' (got 'middle')" in done.stderr
    done = curtail_here("run", "-e", str(experiment), "--unit", "g/kWh", home=tmp_path / "home")
    assert done.returncode == 2 and "--unit" in done.stderr and "--traces" in done.stderr
    assert not (tmp_path / "home").exists()
