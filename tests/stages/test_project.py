"""Opening an experiment: its trace files are read and hashed once, and again when they have changed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from micro import EXPERIMENT, HOURS, START, write_experiment, write_trace

from curtail_pipeline.errors import PolicyError, SettingsError, TraceError
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.stages.project import Project, recorded_days
from curtail_pipeline.storage.folder_store import FolderStore

_seen: list[str] | None = None


def _hook(event: str, arguments: tuple[object, ...]) -> None:
    if _seen is not None and event == "open":
        _seen.append(str(arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """Every file that is opened within the block."""
    global _seen
    _seen = found = []
    try:
        yield found
    finally:
        _seen = None


def read_in(files: list[str], trace: Path) -> int:
    return sum(1 for file in files if file == str(trace))


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    return tmp_path / "homes"


def test_a_second_opening_reads_no_trace(tmp_path: Path, homes: Path) -> None:
    path, trace = write_experiment(tmp_path), tmp_path / "trace.csv"
    with opened_files() as files:
        first = Project.open(path, "headless")
    assert read_in(files, trace)
    with opened_files() as files:
        again = Project.open(path, "headless")
        home_copy = Project.open(again.home.experiment_file, "headless")
    assert not read_in(files, trace)
    assert again.span == home_copy.span == first.span == (START, START + timedelta(hours=HOURS))
    assert again.index == first.index and again.index.regions == ("NORTH", "SOUTH", "EAST")


def test_a_file_that_changed_is_read_again(tmp_path: Path, homes: Path) -> None:
    path, trace = write_experiment(tmp_path), tmp_path / "trace.csv"
    first = Project.open(path, "headless")
    content = trace.read_bytes()
    trace.unlink()
    trace.write_bytes(content)
    with opened_files() as files:
        copied = Project.open(path, "headless")
    assert read_in(files, trace) and copied.index.fingerprint == first.index.fingerprint
    trace.write_bytes(content.replace(b"500.0", b"501.0", 1))
    with pytest.raises(SettingsError, match=r"traces\.content_sha256"):
        Project.open(path, "headless")
    trace.write_bytes(content)
    assert Project.open(path, "headless").span == first.span


def test_a_damaged_index_is_made_again(tmp_path: Path, homes: Path) -> None:
    path = write_experiment(tmp_path)
    first = Project.open(path, "headless")
    for damaged in (b"{", b'{"schema": 1}', b'{"schema": 9}'):
        FolderStore(first.home.store).write_bytes("trace_index.json", damaged)
        assert Project.open(path, "headless").index == first.index


def test_of_several_files_only_the_changed_one_is_hashed(
    tmp_path: Path, homes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from curtail_pipeline.signals import trace_index

    hashed: list[str] = []
    whole = trace_index.file_sha256

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return whole(path)

    monkeypatch.setattr(trace_index, "file_sha256", counted)
    paths = [write_trace(tmp_path / name) for name in ("a.csv", "b.csv")]
    traces = {"provider": "file", "path": [str(path) for path in paths]}
    experiment = parse_experiment({**EXPERIMENT, "traces": traces}, "test")
    Project.open(experiment, "headless")
    assert hashed == ["a.csv", "b.csv"]
    content = paths[1].read_bytes()
    paths[1].unlink()
    paths[1].write_bytes(content)
    Project.open(experiment, "headless")
    assert hashed == ["a.csv", "b.csv", "b.csv"]


def test_a_process_opens_a_project_once(tmp_path: Path, homes: Path) -> None:
    path = write_experiment(tmp_path)

    def opened(clock: str = "replay") -> Project:
        return PipelineResource(experiment=str(path), clock=clock).project()

    first = opened()
    assert opened() is first
    assert opened("headless") is not first
    write_experiment(tmp_path, replay={"speed": 7})
    assert opened().experiment.replay.speed == 7
    trace = tmp_path / "trace.csv"
    trace.write_bytes(trace.read_bytes().replace(b"500.0", b"501.0", 1))
    with pytest.raises(SettingsError, match=r"traces\.content_sha256"):
        opened()


@pytest.mark.parametrize(
    ("changes", "days"),
    [
        ({}, None),
        ({"clock": {"start": "2026-05-03T01:00:00Z"}}, (date(2026, 5, 3), None)),
        (
            {"clock": {"start": "2026-05-03T01:00:00Z", "end": "2026-05-05T00:00:00Z"}},
            (date(2026, 5, 3), date(2026, 5, 4)),
        ),
        (
            {"traces": {"provider": "synthetic", "start": "2026-03-21T00:00:00Z", "days": 3}},
            (date(2026, 3, 21), date(2026, 3, 23)),
        ),
        (
            {"traces": {"provider": "watttime"}, "clock": {"start": "2026-05-03T01:00:00Z"}},
            (date(2026, 5, 3), None),
        ),
        (
            {"traces": {"provider": "combined", "sources": [{"provider": "file", "path": "nowhere.csv"}]}},
            None,
        ),
    ],
    ids=["file", "file with start", "file with both", "synthetic", "live", "combined"],
)
def test_days_without_a_home(
    tmp_path: Path, homes: Path, changes: dict[str, Any], days: tuple[date, date | None] | None
) -> None:
    content = {**EXPERIMENT, "traces": {"provider": "file", "path": "nowhere.csv"}, **changes}
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(content))
    if days is None:
        with pytest.raises(SettingsError, match=r"curtail run.*curtail ui.*clock\.start"):
            recorded_days(path)
    else:
        assert recorded_days(path) == days


def test_days_of_a_live_signal_without_a_start_begin_today(tmp_path: Path, homes: Path) -> None:
    experiment = parse_experiment({**EXPERIMENT, "traces": {"provider": "electricity_maps"}}, "test")
    before = datetime.now(UTC).date()
    first, last = recorded_days(experiment)
    assert before <= first <= datetime.now(UTC).date() and last is None


def test_days_come_from_the_index_of_the_home(tmp_path: Path, homes: Path) -> None:
    path = write_experiment(tmp_path)
    home = Project.open(path, "headless").home
    with opened_files() as files:
        assert recorded_days(path) == recorded_days(home.experiment_file) == (START.date(), START.date())
    assert not read_in(files, tmp_path / "trace.csv")
    elsewhere = write_experiment(tmp_path / "other")
    with pytest.raises(SettingsError, match="curtail run"):
        recorded_days(elsewhere)


def test_unknown_parameters_of_a_policy_are_refused_before_anything_is_made(tmp_path: Path, homes: Path) -> None:
    path = write_experiment(tmp_path, policy={"name": "paper", "parameters": {"enterr": 5}})
    with pytest.raises(PolicyError, match="policy 'paper', parameter enterr"):
        Project.open(path, "headless")
    assert not homes.exists() or not list(homes.rglob("experiment.yaml"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clock": {"end": "2020-01-01T00:00:00Z"}}, "clock.end 2020-01-01T00:00:00Z is not after the start"),
        ({"job": {"steps": 400, "deadline": "2020-01-01"}}, "job.deadline 2020-01-01T00:00:00Z is not after the start"),
        ({"clock": {"start": "2027-01-01"}}, "clock.start 2027-01-01T00:00:00Z is outside the trace"),
    ],
)
def test_a_time_in_which_nothing_could_run_is_refused(
    tmp_path: Path, homes: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        Project.open(write_experiment(tmp_path, **change), "headless")


def test_generation_that_is_not_there_is_refused_at_once(tmp_path: Path, homes: Path) -> None:
    sites = [{**site, "on_site": {"path": str(tmp_path / "sun.csv")}} for site in EXPERIMENT["sites"]]
    with pytest.raises(TraceError, match=r"on-site generation: .*sun.csv cannot be read"):
        Project.open(write_experiment(tmp_path, sites=sites), "headless")


def test_an_experiment_of_ones_own_may_be_called_as_a_homes_copy_is(tmp_path: Path, homes: Path) -> None:
    mine = write_experiment(tmp_path / "mine").rename(tmp_path / "mine" / "experiment.yaml")
    text = mine.read_text()
    opened = Project.open(mine, "headless")
    assert opened.home.root == homes / "micro"
    assert mine.read_text() == text and sorted(p.name for p in mine.parent.iterdir()) == [
        "experiment.yaml",
        "texts.jsonl",
        "trace.csv",
    ]
    assert Project.open(opened.home.experiment_file, "headless").home.root == homes / "micro"
    with pytest.raises(SettingsError, match=r"mine is no home and has a file experiment\.yaml.*--out"):
        Project.open(mine, "headless", mine.parent)
    assert mine.read_text() == text
