"""Bad input on the command line: one paragraph that names the value and the fix, exit code 1, nothing changed."""

import json
from pathlib import Path

import pytest
import yaml
from micro import EXPERIMENT, curtail_here, write_experiment, write_trace


def refused(*words: str, home: Path) -> str:
    done = curtail_here(*words, home=home)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("curtail: ") and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    return done.stderr


def test_an_unknown_key_and_a_wrong_type(tmp_path: Path) -> None:
    path = write_experiment(tmp_path, polcy={"name": "paper"}, job={"steps": "lots"})
    message = refused("run", "--experiment", str(path), home=tmp_path / "home")
    assert "polcy" in message and "job.steps" in message and "lots" in message
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        (None, ["missing.csv"]),
        ("time,NORTH,SOUTH\n2026-05-01T00:00:00Z,1,2\n2026-05-01T00:05:00Z,1,2\n", ["EAST", "NORTH"]),
        ("time,NORTH,SOUTH,EAST\n2026-05-01T00:00:00Z,1,2,3\nlast tuesday,1,2,3\n", ["last tuesday"]),
    ],
)
def test_a_missing_file_a_missing_region_and_a_time_that_is_none(
    tmp_path: Path, trace: str | None, words: list[str]
) -> None:
    path = tmp_path / "missing.csv"
    if trace is not None:
        path.write_text(trace)
    experiment = tmp_path / "x.yaml"
    experiment.write_text(yaml.safe_dump({**EXPERIMENT, "traces": {"provider": "file", "path": str(path)}}))
    message = refused("run", "--experiment", str(experiment), home=tmp_path / "home")
    assert all(word in message for word in words), message


@pytest.mark.parametrize("start", ["2026-04-30T23:55:00Z", "2026-05-01T04:00:00Z"])
def test_a_start_that_the_trace_does_not_cover(tmp_path: Path, start: str) -> None:
    path = write_experiment(tmp_path, clock={"start": start})
    message = refused("run", "--experiment", str(path), home=tmp_path / "home")
    assert start in message and "2026-05-01T00:00:00Z to 2026-05-01T04:00:00Z" in message


def test_an_unknown_checkpoint_policy_and_benchmark(tmp_path: Path) -> None:
    experiment = str(write_experiment(tmp_path))
    trace = str(write_trace(tmp_path / "t.csv"))
    assert "ckpt-000099" in refused("checkpoints", "show", "ckpt-000099", "-e", experiment, home=tmp_path)
    assert "nonsense" in refused("windows", "--traces", trace, "--policy", "nonsense", home=tmp_path)
    assert "windows" in refused("bench", "nonsense", home=tmp_path)


HOUR = [f"2026-05-01T00:{minute:02d}:00Z" for minute in range(0, 60, 5)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([f"{stamp},0.5" for stamp in HOUR], ["A marginal_intensity", "0.5", "unit: kg/kWh"]),
        ([f"{stamp},-5" for stamp in HOUR], ["-5", HOUR[0], "[0, 2000]"]),
        (["1900-01-01T00:00:00Z,1", *(f"{stamp},500" for stamp in HOUR)], ["1900-01-01T00:00:00Z", HOUR[0]]),
        (["9999-12-31T23:50:00Z,500", "9999-12-31T23:55:00Z,500"], ["9999-12-31T23:50:00Z"]),
    ],
)
def test_values_and_times_that_cannot_be_are_refused(tmp_path: Path, rows: list[str], words: list[str]) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("\n".join(["time,A", *rows]) + "\n")
    message = refused("windows", "--traces", str(trace), home=tmp_path)
    assert all(word in message for word in words), message


def test_a_region_is_printed_as_it_is_called(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("time,[red]A[/b]\n" + "\n".join(f"{stamp},50" for stamp in HOUR) + "\n")
    done = curtail_here("windows", "--traces", str(trace), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "[red]A[/b]: 1.00 h" in done.stdout


def test_wrong_usage_is_exit_code_two(tmp_path: Path) -> None:
    assert curtail_here("run", "--no-such-option", home=tmp_path).returncode == 2
    trace = str(write_trace(tmp_path / "t.csv"))
    for words in (["--plot", "x.svg"], ["--compare", "--policy", "paper"]):
        assert curtail_here("simulate", "--traces", trace, *words, home=tmp_path).returncode == 2


def test_windows_as_json(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "t.csv")
    done = curtail_here("windows", "--traces", str(trace), "--policy", "threshold", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["hours"] == pytest.approx({"NORTH": 1.5, "SOUTH": 110 / 60, "EAST": 20 / 60})
    assert found["nulls"] == found["duplicates"] == 0


def test_simulate_as_json(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, job={"steps": 30})
    done = curtail_here(
        "simulate", "--traces", str(tmp_path / "trace.csv"), "-e", str(experiment), "--json", home=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["finished"] and found["steps"] == 30
    assert found["oracle_co2_kg"] <= found["co2_kg"]


def test_a_sweep_as_json(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, job={"steps": 30})
    arguments = ["simulate", "--traces", str(tmp_path / "trace.csv"), "-e", str(experiment), "--sweep"]
    done = curtail_here(*arguments, "round_s", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])["sweep"]
    assert [row["round_s"] for row in rows] == sorted(row["round_s"] for row in rows)
    assert sum(row["auto"] for row in rows) == 1
    wrong = curtail_here(*arguments, "outer_lr", home=tmp_path)
    assert wrong.returncode == 1
    assert "--sweep outer_lr: only round_s can be varied" in wrong.stderr
