import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.errors import SettingsError, StoreError
from curtail_pipeline.settings.experiment import Experiment, load_experiment, parse_experiment
from curtail_pipeline.settings.trace_settings import CombinedTraces, FileTraces
from curtail_pipeline.storage.clock import HeadlessClock, LiveClock, ReplayClock
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.home import Home, differences, experiment_record, homes_root

START = datetime(2026, 1, 11, 17, tzinfo=UTC)


def experiment(**changes: Any) -> Experiment:
    content: dict[str, Any] = {
        "name": "try",
        "traces": {"provider": "file", "path": "here/mci.csv"},
        "sites": [
            {"name": "A", "region": "CAISO_NORTH", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.3},
            {"name": "B", "region": "SPP_TX", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.3},
        ],
        "job": {"steps": 10},
    }
    return parse_experiment({**content, **changes}, "test")


def test_open_creates_and_opens_again(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    assert not home.exists()
    record = home.open(experiment(), "f" * 64)
    assert home.exists() and record == experiment_record(experiment(), "f" * 64)
    assert home.dagster.is_dir() and home.federation.is_dir() and Path(home.store).is_dir()
    absolute = experiment(traces={"provider": "file", "path": str(Path("here/mci.csv").resolve())})
    assert home.experiment() == absolute == load_experiment(home.experiment_file)
    before = {p: (p.read_bytes(), p.stat().st_ino) for p in home.root.rglob("*.[jy]*")}
    assert len(before) == 3
    assert home.open(experiment(), "f" * 64) == record == home.record()
    assert {p: (p.read_bytes(), p.stat().st_ino) for p in home.root.rglob("*.[jy]*")} == before


def test_what_a_result_does_not_depend_on_may_change(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    first = home.open(experiment(), "f" * 64)
    moved = experiment(
        traces={"provider": "file", "path": "/there/copy.csv"},
        clock={"end": "2026-01-12T00:00:00Z"},
        replay={"speed": 60},
        federation={"liveness_s": 5},
    )
    assert home.open(moved, "f" * 64).sha256 == first.sha256
    assert load_experiment(home.experiment_file) == moved == home.experiment()


def test_a_changed_experiment_is_refused_with_the_difference(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    home.open(experiment(), "f" * 64)
    before = {p: p.read_bytes() for p in home.root.rglob("*") if p.is_file()}
    sites = experiment().model_dump(mode="json")["sites"]
    sites[1]["training_kw"] = 2.5
    with pytest.raises(SettingsError) as error:
        home.open(experiment(sites=sites, seed=3), "f" * 64)
    assert "seed: 0 -> 3" in str(error.value) and "sites.B.training_kw: 2.0 -> 2.5" in str(error.value)
    assert "--out" in str(error.value) and "sites.A" not in str(error.value)
    with pytest.raises(SettingsError, match=r"traces.content_sha256: 'f+' -> '0+'"):
        home.open(experiment(), "0" * 64)
    with pytest.raises(SettingsError, match=r"changed: sites.B: .* -> .absent."):
        home.open(experiment(sites=[*sites[:1], {**sites[1], "name": "C"}]), "f" * 64)
    assert {p: p.read_bytes() for p in home.root.rglob("*") if p.is_file()} == before


def test_a_setting_added_by_a_new_version_is_not_a_change(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    record = home.open(experiment(), "f" * 64).model_dump(mode="json")
    stored = FolderStore(home.store).read_json("experiment.json")
    for part in (record["identity"], stored):
        del part["rounds"]["norm_bound"]
    record["sha256"] = "1" * 64
    FolderStore(home.store).write_json("experiment_identity.json", record)
    FolderStore(home.store).write_json("experiment.json", stored)
    assert home.open(experiment(), "f" * 64).sha256 == "1" * 64
    with pytest.raises(SettingsError, match=r"norm_bound: 5.0 -> 7.0"):
        home.open(experiment(rounds={"norm_bound": 7}), "f" * 64)


def test_what_was_done_before_a_setting_existed_is_no_default(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    record = home.open(experiment(), "f" * 64).model_dump(mode="json")
    stored = FolderStore(home.store).read_json("experiment.json")
    for part in (record["identity"], stored):
        del part["rounds"]["inner_state"], part["rounds"]["member_lr_power"], part["corpus"]["fresh_first"]
    record["sha256"] = "1" * 64
    FolderStore(home.store).write_json("experiment_identity.json", record)
    FolderStore(home.store).write_json("experiment.json", stored)
    with pytest.raises(SettingsError, match=r"inner_state: 'own' -> 'merged'; corpus.fresh_first: False -> True"):
        home.open(experiment(), "f" * 64)
    rounds = {"inner_state": "own", "member_lr_power": 0}
    assert home.open(experiment(rounds=rounds, corpus={"fresh_first": False}), "f" * 64).sha256 == "1" * 64


def test_a_site_may_be_added_and_compute_with_something_else(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    first = home.open(experiment(), "f" * 64)
    sites = experiment().model_dump(mode="json")["sites"]
    sites[0] |= {"device": "cuda:0", "threads": 4}
    assert home.open(experiment(sites=sites), "f" * 64) == first
    assert home.experiment().site("A").threads == 4
    more = experiment(sites=[*sites, {**sites[1], "name": "C"}])
    record = home.open(more, "f" * 64)
    assert record.sha256 != first.sha256 and home.record() == record
    assert home.open(more, "f" * 64) == record
    with pytest.raises(SettingsError, match=r"changed: sites.C: .* -> .absent."):
        home.open(experiment(sites=sites), "f" * 64)


FILES = {"provider": "file", "path": ["here/*.csv", "~/there.csv"]}


@pytest.mark.parametrize("traces", [FILES, {"provider": "combined", "sources": [FILES, {"provider": "watttime"}]}])
def test_lists_and_patterns_of_trace_files_are_kept_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, traces: dict[str, Any]
) -> None:
    monkeypatch.setenv("HOME", "/nobody")
    home = Home(tmp_path / "home")
    record = home.open(experiment(traces=traces), "f" * 64)
    stored = home.experiment().traces
    source = stored.sources[0] if isinstance(stored, CombinedTraces) else stored
    assert isinstance(source, FileTraces)
    assert source.path == [str(Path("here").resolve() / "*.csv"), "/nobody/there.csv"]
    assert "path" not in repr(record.identity["traces"])
    moved = {**FILES, "path": "/elsewhere/copy.csv"}
    if traces is not FILES:
        moved = {**traces, "sources": [moved, traces["sources"][1]]}
    assert home.open(experiment(traces=moved), "f" * 64).sha256 == record.sha256


@pytest.mark.parametrize(("version", "word"), [(1, "an earlier"), (3, "a later")])
def test_a_home_of_another_version_is_refused_and_left_alone(tmp_path: Path, version: int, word: str) -> None:
    home = Home(tmp_path / "home")
    record = home.open(experiment(), "f" * 64).model_dump(mode="json")
    del record["schema"]
    FolderStore(home.store).write_json("experiment_identity.json", {**record, "format": version})
    before = {p: p.read_bytes() for p in home.root.rglob("*") if p.is_file()}
    with pytest.raises(StoreError, match=rf"{word} version of curtail_pipeline .*format is {version}.* --out") as error:
        home.open(experiment(), "f" * 64)
    assert "\n" not in str(error.value)
    assert {p: p.read_bytes() for p in home.root.rglob("*") if p.is_file()} == before


def test_a_store_with_checkpoints_and_no_record_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    FolderStore(home.store).write_json("checkpoints/ckpt-000000/manifest.json", {"format": 1})
    with pytest.raises(StoreError, match="an earlier version of curtail_pipeline"):
        home.open(experiment(), "f" * 64)
    assert not home.exists() and not home.experiment_file.exists()


def test_differences_in_lists() -> None:
    a, b = {"name": "a", "x": 1}, {"name": "b", "x": 1}
    assert differences({"sites": [a, b]}, {"sites": [b, a]}) == [("sites", "order a, b", "order b, a")]
    assert differences({"r": [1, 2]}, {"r": [1, 3]}) == [("r", "[1, 2]", "[1, 3]")]
    assert differences({"r": {"x": None}}, {"r": {}}) == [("r.x", "None", "(absent)")]


def test_unreadable_record(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    with pytest.raises(StoreError, match=r"experiment\.json is not in the store"):
        home.experiment()
    home.open(experiment(), "f" * 64)
    record = Path(home.store) / "experiment_identity.json"
    for damaged in (b"{", b"[]", b"{}"):
        record.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"experiment_identity\.json"):
            home.open(experiment(), "f" * 64)
        assert record.read_bytes() == damaged


def test_a_home_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError, match=r"file/home cannot be written.*CURTAIL_HOME"):
        Home(tmp_path / "file" / "home").open(experiment(), "f" * 64)


def test_where_homes_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CURTAIL_HOME", raising=False)
    assert homes_root() == tmp_path / ".curtail"
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "elsewhere"))
    assert Home.of(experiment()).root == tmp_path / "elsewhere" / "try"
    assert Home.of(experiment(), tmp_path / "out").root == tmp_path / "out"


def test_a_store_in_the_environment_is_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURTAIL_STORE", str(tmp_path))
    with pytest.raises(SettingsError, match=r"CURTAIL_STORE is .* no s3://bucket/prefix; give a folder with --out"):
        Home.of(load_experiment("laptop"))


def test_lock_names_the_process_that_has_it(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom curtail_pipeline.storage.home import Home\n"
        f"with Home({str(tmp_path)!r}).lock():\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout and other.stdin
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(StoreError, match=rf"another `curtail run` \(pid {other.pid}\)"), Home(tmp_path).lock():
        pass
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    with Home(tmp_path).lock():
        assert (tmp_path / "run.pid").read_text() == str(os.getpid())
        with pytest.raises(StoreError, match=f"pid {os.getpid()}"), Home(tmp_path).lock():
            pass
    with Home(tmp_path).lock():
        pass


def test_headless_clock_only_moves_forward(tmp_path: Path) -> None:
    clock = HeadlessClock(FolderStore(tmp_path), START)
    assert clock.now() == START
    later = START + timedelta(minutes=5, microseconds=7)
    assert clock.advance_to(later) == later
    assert clock.advance_to(START) == later
    assert HeadlessClock(FolderStore(tmp_path), START).now() == later
    FolderStore(tmp_path).write_bytes("clock.json", b'{"schema": 1, "now": "noon"}')
    with pytest.raises(StoreError, match=r"clock\.json .* now: .*remove .*/clock\.json to start the clock again"):
        clock.now()


def test_replay_clock_is_the_same_for_all_processes(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    first = ReplayClock(store, START, speed=120)
    second = ReplayClock(store, START + timedelta(days=9), speed=1)
    assert second.speed == 120
    wall = datetime(2026, 3, 1, tzinfo=UTC)
    first.anchor(START, 120, wall)
    for clock in (first, second):
        assert clock.to_virtual(wall + timedelta(seconds=30)) == START + timedelta(hours=1)
    capped = ReplayClock(store, START, 120, end=START + timedelta(minutes=1))
    assert capped.to_virtual(wall + timedelta(days=1)) == START + timedelta(minutes=1) == capped.now()
    with pytest.raises(ValueError, match="speed 0"):
        ReplayClock(store, START, 0)


def test_live_clock_is_utc() -> None:
    assert LiveClock().now().utcoffset() == timedelta(0)


def test_what_nobody_declared_stays_undeclared_for_other_processes(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    sources = [{"provider": "file", "path": "a.csv", "unit": "lb/MWh"}, {"provider": "synthetic", "start": START}]
    home.open(experiment(traces={"provider": "combined", "sources": sources}), "f" * 64)
    for found in (home.experiment(), load_experiment(home.experiment_file)):
        assert isinstance(found.traces, CombinedTraces)
        assert found.traces.sources[0].model_fields_set == {"provider", "path", "unit"}


def test_a_home_in_the_place_of_a_file_or_nowhere(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StoreError, match="cannot be written: Not a directory"):
            Home.of(experiment(), place).exists()
    with pytest.raises(SettingsError, match="--out is empty"):
        Home.of(experiment(), "")
