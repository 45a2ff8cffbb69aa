"""The whole pipeline on the micro experiment, with real processes: run, load, replay, kill, resume, corrupt."""

import json
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from micro import CURTAILED, START, curtail, environment, start_curtail, write_experiment

from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.signals.checks import CHECKS
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import Manifest

pytestmark = pytest.mark.slow


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s"
        time.sleep(0.1)


def processes_of(home: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(home) in line or (process.info["environ"] or {}).get("CURTAIL_HOME") == str(home):
            found.append(process)
    return found


def manifests(home: Path) -> dict[str, Manifest]:
    checkpoints = Checkpoints(FolderStore(home / "micro" / "store"))
    return {key: checkpoints.manifest(key) for key in checkpoints.keys()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, dict]]:
    """(home, experiment file, summary) of a run that nothing disturbed."""
    home = tmp_path_factory.mktemp("home")
    experiment = write_experiment(home / "input")
    done = curtail("run", "--experiment", str(experiment), "--json", home=home)
    assert done.returncode == 0, done.stderr
    yield home, experiment, json.loads(done.stdout.splitlines()[-1])
    assert not processes_of(home)


def test_every_mode_runs_and_the_summary_says_so(finished: tuple[Path, Path, dict]) -> None:
    home, _, summary = finished
    modes = [row["mode"] for row in summary["checkpoints"]]
    assert modes[0] == "init" and {"local", "federated"} <= set(modes)
    assert all(row["heldout_loss"] is not None for row in summary["checkpoints"])
    assert summary["checkpoints"][-1]["heldout_loss"] < summary["checkpoints"][0]["heldout_loss"]
    assert {row["region"] for row in summary["baselines"]} == set(CURTAILED)
    assert [check["name"] for check in summary["checks"]] == list(CHECKS)
    assert all(check["passed"] for check in summary["checks"])
    assert Path(summary["report"]).stat().st_size > 10_000
    assert not processes_of(home), "the federation outlived the run"


def test_membership_is_what_the_rule_gives_on_the_trace(finished: tuple[Path, Path, dict]) -> None:
    """Realised members against the rule applied by hand: 250 s of start-up, 600 s of exit delay."""
    home, _, _ = finished
    for manifest in [m for m in manifests(home).values() if m.mode != "init"]:
        minute = (manifest.start - START).total_seconds() / 60
        trains = [site for site, ((first, last),) in CURTAILED.items() if first + 250 / 60 <= minute + 1e-9 < last + 10]
        assert manifest.members == trains, manifest.key
        assert (manifest.mode == "federated") == (len(trains) > 1)


def test_token_ranges_are_an_exact_partition(finished: tuple[Path, Path, dict]) -> None:
    home, _, summary = finished
    last = list(manifests(home).values())[-1]
    counted = 0
    for site, ledger in last.ledger.items():
        ranges = sorted(tuple(part) for part in ledger.consumed)
        assert all(first[2] < second[1] or first[0] < second[0] for first, second in pairwise(ranges)), site
        assert ranges[0][1] == 0
        counted += sum(end - begin for _, begin, end in ranges)
    assert counted * 64 == last.tokens.total == summary["tokens"]
    assert Checkpoints(FolderStore(home / "micro" / "store")).verify_chain()


def test_the_last_checkpoint_loads_and_generates_with_transformers_alone(finished: tuple[Path, Path, dict]) -> None:
    code = """
import sys
sys.modules["curtail_pipeline"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
out = model.generate(**tokenizer("Return the", return_tensors="pt"), max_new_tokens=8, do_sample=False)
print(repr(tokenizer.decode(out[0])))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, finished[2]["checkpoint"]], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Return the" in done.stdout


def test_running_again_does_nothing_new(finished: tuple[Path, Path, dict]) -> None:
    home, experiment, summary = finished
    log = home / "micro" / "federation" / "logs" / "supervisor.log"
    started = log.stat().st_mtime_ns
    again = curtail("run", "--experiment", str(experiment), "--json", home=home)
    assert again.returncode == 0, again.stderr
    assert log.stat().st_mtime_ns == started, "a federation was started that nobody needs"
    assert json.loads(again.stdout.splitlines()[-1])["checkpoints"] == summary["checkpoints"]


def materialise(home: Path, *wanted: str, **more: str) -> list[dict[str, Any]]:
    """What materialising came to, through Dagster as the UI's button does it (`tests/materialise.py`)."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "materialise.py"), str(home / "micro"), *wanted],
        env=environment(home) | more,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def key_of(summary: dict, mode: str) -> str:
    return next(row["key"] for row in summary["checkpoints"] if row["mode"] == mode)


REPLAYED = ("local", "federated", "federated")
WISHES = (
    {"mode": "evaluate"},
    {"mode": "export", "destination": "exports/one"},
    {"mode": "export", "destination": "exports/one"},
    {"mode": "extend", "rounds": 2},
    {"mode": "branch", "seed": 99},
    {"mode": "branch"},
)
"""Of a federated checkpoint."""


@pytest.fixture(scope="module")
def asked(finished: tuple[Path, Path, dict]) -> list[dict[str, Any]]:
    """What replays and then wishes came to, in one process on one federation; the main lineage is as it was."""
    home, _, summary = finished
    before = {name: found.sha256() for name, found in manifests(home).items()}
    key = key_of(summary, "federated")
    wanted = [key_of(summary, mode) for mode in REPLAYED] + [f"{key}={json.dumps(wish)}" for wish in WISHES]
    found = materialise(home, *wanted)
    assert {name: found.sha256() for name, found in manifests(home).items()} == before, "the main lineage was touched"
    return found


def test_materialising_earlier_keys_reproduces_their_weights(
    finished: tuple[Path, Path, dict], asked: list[dict[str, Any]]
) -> None:
    """A local and a federated one, the latter twice in a row."""
    home, _, summary = finished
    for mode, found in zip(REPLAYED, asked, strict=False):
        committed = manifests(home)[key_of(summary, mode)]
        assert found["identical"] is True and found["checks"] == {"replay_identical": True, "token_ledger": True}
        assert found["replay"]["replayed_sha256"] == committed.files["model.safetensors"].sha256
        assert found["replayed_steps"] == committed.steps.end - committed.steps.begin > 0
    assert not FolderStore(home / "micro" / "store").list("scratch/replays")


def test_on_demand_a_checkpoint_is_evaluated_exported_and_branched_off(
    finished: tuple[Path, Path, dict], asked: list[dict[str, Any]]
) -> None:
    home, _, summary = finished
    key = key_of(summary, "federated")
    evaluated, exported, refused, longer, other, unsaid = asked[len(REPLAYED) :]
    row = next(row for row in summary["checkpoints"] if row["key"] == key)
    assert evaluated["success"] and evaluated["checks"] == {}
    assert evaluated["held-out loss (nat/token)"] == pytest.approx(row["heldout_loss"], rel=1e-3)
    assert (Path(exported["exported to"]) / "README.md").exists()
    assert exported["exported to"] == str(home / "micro" / "exports" / "one")
    assert not refused["success"] and "export to a new one" in str(refused["errors"])
    assert not unsaid["success"] and "set `seed`" in str(unsaid["errors"])

    committed = manifests(home)[key]
    store = FolderStore(home / "micro" / "store")
    extended = Checkpoints(FolderStore(store.path(f"branches/{longer['branch']}")))
    (tip,) = [extended.verify(name) for name in extended.keys() if name != key]
    assert tip.parent == key and tip.rounds == 2 and tip.steps.begin == committed.steps.end
    steps = tip.steps.end - tip.steps.begin
    assert steps > 0 and longer["branch trained"].startswith(f"2 rounds, {steps:,} steps, ")
    assert longer["branch manifest"]["files"]["model.safetensors"]["sha256"].startswith(longer["branch weights"])
    seeded = Checkpoints(FolderStore(store.path(f"branches/{other['branch']}")))
    again = seeded.verify(key)
    assert again.seed == 99 and again.steps == committed.steps and again.ledger == committed.ledger
    assert again.files["model.safetensors"].sha256 != committed.files["model.safetensors"].sha256
    assert not store.list("scratch/replays")


def test_a_replay_in_a_process_of_its_own_gives_the_same_weights(
    finished: tuple[Path, Path, dict], tmp_path: Path
) -> None:
    """`federation.replay: own`: no SuperLink, no resident trainer."""
    home, _, summary = finished
    shutil.copytree(home / "micro", tmp_path / "micro")
    settings = tmp_path / "micro" / "experiment.yaml"
    settings.write_text(settings.read_text().replace("replay: spare", "replay: own"))
    (found,) = materialise(tmp_path, key_of(summary, "federated"), PATH="/nowhere")
    assert found["success"], found["errors"]
    assert found["identical"] is True
    assert not (tmp_path / "micro" / "federation" / "federation.json").exists()


def test_a_standing_superlink_gives_the_same_weights_also_from_an_older_copy_of_its_database(
    finished: tuple[Path, Path, dict], tmp_path: Path
) -> None:
    """A federated key again, over `curtail superlink` and one `curtail site run` per member, by TLS and keys.

    The copy is of the moment when sites were registered: it knows of no run, and the sites that are at work stay.
    """
    home, experiment, summary = finished
    row = next(row for row in summary["checkpoints"] if row["mode"] == "federated")
    port = free_port()
    log, keys, address = tmp_path / "superlink.log", tmp_path / "keys", f"127.0.0.1:{port}"
    made = curtail("deploy", "keys", str(keys), "--host", "superlink.example", home=home)
    assert made.returncode == 0, made.stderr
    database, copy = tmp_path / "link" / "superlink.db", tmp_path / "copy.db"
    words = ["superlink", "--port", str(port), "--folder", str(database.parent), "--keys", str(keys)]
    roles = [start_curtail(*words, home=home, log=log)]

    def replay() -> None:
        (found,) = materialise(home, row["key"], CURTAIL_SUPERLINK=address, CURTAIL_CA=str(keys / "ca.crt"))
        assert found["identical"] is True, found["errors"]
        assert "PushMessages" in log.read_text(), "the segment did not run over this SuperLink"

    try:
        wait_for(lambda: listens(port), 300, "a SuperLink that listens")
        key = {
            site: ["--superlink", address, "--ca", str(keys / "ca.crt"), "--key", str(tmp_path / site)]
            for site in row["members"]
        }
        for site in row["members"]:
            admitted = curtail("site", "register", site, *key[site], home=home)
            assert admitted.returncode == 0, admitted.stderr
        with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(copy)) as kept:
            live.backup(kept)
        for site in row["members"]:
            words_of_site = ["site", "run", site, *key[site], "--experiment", str(experiment)]
            roles.append(start_curtail(*words_of_site, home=home, log=tmp_path / f"{site}.log"))
        wait_for(lambda: log.read_text().count("Fleet.ActivateNode") >= len(key), 300, "all sites online")
        replay()
        roles[0].terminate()
        roles[0].wait(300)
        for left in database.parent.glob(f"{database.name}*"):
            left.unlink()
        shutil.copy(copy, database)
        log.unlink()
        roles[0] = start_curtail(*words, home=home, log=log)
        logs = [tmp_path / f"{site}.log" for site in key]
        wait_for(lambda: all("Connection successful" in each.read_text() for each in logs), 300, "all sites again")
        replay()
    finally:
        for role in roles:
            role.terminate()
        for role in roles:
            role.wait(300)
    assert [role.returncode for role in roles[1:]] == [0] * len(row["members"])
    wait_for(lambda: not processes_of(home) and not listens(port), 90, "the end of all that the roles had started")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_told_to_stop_then_killed_it_goes_on_and_ends_with_the_same_weights(
    finished: tuple[Path, Path, dict], tmp_path: Path
) -> None:
    """SIGTERM in the first segment, SIGKILL in a federated round, then to the end."""
    reference = list(manifests(finished[0]).values())[-1]
    experiment = write_experiment(tmp_path / "input")
    log = tmp_path / "log"
    scratch = tmp_path / "micro" / "store" / "scratch"

    def interrupted_when(under_way: Callable[[], bool], what: str, told: signal.Signals) -> int:
        process = start_curtail("run", "--experiment", str(experiment), home=tmp_path, log=log)

        def seen() -> bool:
            assert process.poll() is None, log.read_text()
            return under_way()

        wait_for(seen, 300, what)
        process.send_signal(told)
        code = process.wait(300)
        wait_for(lambda: not processes_of(tmp_path), 90, "the end of what the run had started")
        return code

    def first_segment() -> bool:
        return any(scratch.glob("ckpt-000001/*/flower.json"))

    assert interrupted_when(first_segment, "a segment", signal.SIGTERM) == 130
    assert "run it again" in log.read_text() and "Traceback" not in log.read_text()

    def federated_round() -> bool:
        return any('"federated"' in plan.read_text() for plan in scratch.glob("*/*/plan.json") if plan.exists())

    assert interrupted_when(federated_round, "a federated segment", signal.SIGKILL) == -signal.SIGKILL
    before = manifests(tmp_path)
    done = curtail("run", "--experiment", str(experiment), home=tmp_path)
    assert done.returncode == 0, done.stderr
    after = manifests(tmp_path)
    assert {key: after[key].sha256() for key in before} == {key: found.sha256() for key, found in before.items()}
    last = list(after.values())[-1]
    assert last.ledger == reference.ledger
    assert last.files["model.safetensors"].sha256 == reference.files["model.safetensors"].sha256
    assert not processes_of(tmp_path)


def test_a_changed_experiment_on_an_existing_home_is_refused_with_the_difference(
    finished: tuple[Path, Path, dict], tmp_path: Path
) -> None:
    home, _, _ = finished
    before = {key: found.sha256() for key, found in manifests(home).items()}
    changed = write_experiment(tmp_path, seed=4)
    done = curtail("run", "--experiment", str(changed), home=home)
    assert done.returncode == 1
    assert "seed" in done.stderr and "3" in done.stderr and "4" in done.stderr and "--out" in done.stderr
    assert {key: found.sha256() for key, found in manifests(home).items()} == before


def test_damaged_files_are_found_and_made_again(finished: tuple[Path, Path, dict], tmp_path: Path) -> None:
    """Weights and outer state by training the segment again, the rest by copying; all of it to the byte."""
    home, _, summary = finished
    shutil.copytree(home / "micro", tmp_path / "micro")
    settings, key = tmp_path / "micro" / "experiment.yaml", key_of(summary, "federated")
    settings.write_text(settings.read_text().replace("replay: spare", "replay: own"))
    folder, committed = (root / "micro" / "store" / "checkpoints" / key for root in (tmp_path, home))
    wrong = ("model.safetensors", "outer.safetensors", "config.json")
    for name in wrong:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(bytes(data))
    (folder / "tokenizer.json").unlink()
    (folder.parent / "ckpt-000000" / "model.safetensors").unlink()

    def command(*words: str) -> "subprocess.CompletedProcess[str]":
        return curtail("checkpoints", *words, "--experiment", str(settings), home=tmp_path, timeout=300)

    found = command("verify")
    assert found.returncode == 1
    assert all(word in found.stderr for word in ("model.safetensors", "is missing", "checkpoints repair ckpt-000000"))
    repaired = command("repair")
    assert repaired.returncode == 0, repaired.stderr
    assert f"{key}: config.json copied from ckpt-" in repaired.stdout and "are intact" in repaired.stdout
    for name in (*wrong, "tokenizer.json"):
        assert (folder / name).read_bytes() == (committed / name).read_bytes()
        assert (folder / name).stat().st_nlink == 1, "damage to one file would be damage to two"
    assert "ckpt-000000: model.safetensors initialised again" in repaired.stdout
    assert manifests(tmp_path) == manifests(home)

    (folder / "plan.json").write_bytes(b"{}")
    refused = command("repair", key)
    assert refused.returncode == 1 and "plan.json" in refused.stderr and "restore it from a copy" in refused.stderr
