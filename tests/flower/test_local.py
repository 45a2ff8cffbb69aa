"""The local federation with real processes: SuperLink, SuperNodes, and a stub in the trainer's place."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from stub_federation import (
    PER_STEP,
    SITES,
    STUB,
    asking,
    experiment,
    gone,
    listening,
    new_store,
    plan,
    ports_of,
    processes_of,
    undisturbed,
)
from waiting import wait_until

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.orders import Plan, Segment
from curtail_pipeline.federation.plan import replay_of
from curtail_pipeline.federation.progress import RoundMerged, SegmentEvent, StepDone, Submitted
from curtail_pipeline.flower.control_api import Control
from curtail_pipeline.flower.federation_state import DOWN
from curtail_pipeline.flower.local import Federation, LocalFederation
from curtail_pipeline.flower.run_config import FlowerRun
from curtail_pipeline.flower.submit import SegmentCancelled, submit_and_follow
from curtail_pipeline.flower.trainer_client import Trainer
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import InnerStates, SiteResult

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("overlap", [False, True])
def test_a_segment_over_flower_equals_the_segment_in_memory(
    handle: Federation, store: FolderStore, tmp_path: Path, overlap: bool
) -> None:
    rounds, key = [{"CA": 2, "TX": 1}, {"CA": 1, "TX": 2}], "ckpt-000021" if overlap else "ckpt-000001"
    events: list[SegmentEvent] = []
    exchange = {"upload": "int8", "overlap": True} if overlap else {}
    over_flower = submit_and_follow(handle, plan(store, key, rounds, exchange=exchange), store, events.append)
    in_memory = undisturbed(store.read_record(f"scratch/{key}/1/plan.json", Plan), tmp_path)
    assert over_flower.weights.sha256 == in_memory.weights.sha256
    assert over_flower.sites == in_memory.sites
    assert [type(e) for e in events if not isinstance(e, StepDone)] == [Submitted, RoundMerged, RoundMerged]
    assert events[0] == Submitted(store.read_record(f"scratch/{key}/1/flower.json", FlowerRun).run_id)
    # asked again for the same plan: the same outcome, no further run
    again: list[Any] = []
    assert submit_and_follow(handle, f"scratch/{key}/1/plan.json", store, again.append) == over_flower
    assert again == []


def test_a_slow_site_is_waited_for_no_longer_than_the_grace(
    handle: Federation, store: FolderStore, tmp_path: Path
) -> None:
    quorum = {"members": 1, "grace": 4.0}
    key = plan(store, "ckpt-000010", [{"CA": 1, "TX": 4000}, {"CA": 1, "TX": 2}], seed=7, quorum=quorum)
    segment = submit_and_follow(handle, key, store)
    first, second = segment.rounds
    assert first.steps == {"CA": 1} and first.refused["TX"].startswith("no answer after")
    assert second.steps == {"CA": 1, "TX": 2} and second.overdue.keys() == {"TX"}
    assert segment.sites["TX"].consumed == [(1, 0, 2 * PER_STEP)], "its text went back"
    again = replay_of(store.read_record(key, Plan), segment, {}, "again")
    assert undisturbed(again, tmp_path).weights.sha256 == segment.weights.sha256


def test_a_caller_that_was_killed_follows_the_same_run(handle: Federation, store: FolderStore) -> None:
    key = plan(store, "ckpt-000002", [{"CA": 12, "TX": 12}], seed=7)
    flower = store.path("scratch/ckpt-000002/1/flower.json")
    caller = multiprocessing.get_context("spawn").Process(target=submit_and_follow, args=(handle, key, store))
    caller.start()
    wait_until(flower.exists, 600)
    run_id = json.loads(flower.read_text())["run_id"]
    caller.kill()
    caller.join()
    flower.unlink()  # as if killed before it was written
    events: list[SegmentEvent] = []
    segment = submit_and_follow(handle, key, store, events.append)
    assert events[0] == Submitted(run_id, again=True) and segment.steps == 24


def test_an_interrupt_stops_the_run_and_its_sites(handle: Federation, store: FolderStore) -> None:
    key = plan(store, "ckpt-000009", [{"CA": 500}], seed=7)
    submitted: list[int] = []

    def interrupt(event: SegmentEvent) -> None:
        submitted.extend([event.run_id] if isinstance(event, Submitted) else [])
        if isinstance(event, StepDone):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit_and_follow(handle, key, store, interrupt)
    with Control(handle.state().superlink.address) as control:
        status = control.status(submitted[0])
        assert status is not None and status.finished and status.sub_status == "stopped"


def test_a_failing_trainer_fails_the_run_with_its_reason(handle: Federation, store: FolderStore) -> None:
    key = plan(store, "ckpt-000003", [{"CA": 1, "TX": 1}], seed=666)
    with pytest.raises(FederationError, match=r"(?s)no site delivered .*500: shards/CA is corrupt") as caught:
        submit_and_follow(handle, key, store)
    assert "run" in str(caught.value) and not store.exists("scratch/ckpt-000003/1/segment.json")


def test_cancelling_stops_the_sites(handle: Federation, store: FolderStore) -> None:
    key = plan(store, "ckpt-000004", [{"CA": 500}], seed=7)
    begun = threading.Event()
    with pytest.raises(SegmentCancelled):
        submit_and_follow(handle, key, store, lambda e: begun.set() if isinstance(e, StepDone) else None, begun.is_set)
    # the site is free again at once: 500 steps would last 100 s
    segment = submit_and_follow(handle, plan(store, "ckpt-000005", [{"CA": 1}]), store)
    assert segment.steps == 1


@pytest.mark.long
def test_a_killed_trainer_is_lost_to_the_round_and_comes_back(
    federation: LocalFederation, handle: Federation, store: FolderStore
) -> None:
    key = plan(store, "ckpt-000006", [{"CA": 5, "TX": 100}] * 2, seed=7)
    killed: list[float] = []

    def kill(event: SegmentEvent) -> None:
        if isinstance(event, StepDone) and event.site == "TX" and not killed:
            os.kill(federation.status().sites["TX"].trainer.pid, signal.SIGKILL)
            killed.append(time.monotonic())

    segment = submit_and_follow(handle, key, store, kill)
    assert segment.stop_reason.startswith("TX lost") and segment.sites["CA"].steps == 5
    assert segment.sites["TX"] == SiteResult(
        steps=0, tokens=0, consumed=[], inner_state=InnerStates(begin="fresh", end="fresh")
    )
    assert time.monotonic() - killed[0] < 45
    handle.wait_ready(SITES)
    assert submit_and_follow(handle, plan(store, "ckpt-000007", [{"CA": 1, "TX": 1}]), store).steps == 2


def test_a_killed_supernode_comes_back_as_another_node(
    federation: LocalFederation, handle: Federation, store: FolderStore
) -> None:
    before = federation.status().sites["CA"].supernode
    os.kill(before.pid, signal.SIGKILL)
    wait_until(lambda: federation.status().sites["CA"].supernode.node_id not in (None, before.node_id))
    assert submit_and_follow(handle, plan(store, "ckpt-000008", [{"CA": 1, "TX": 1}]), store).steps == 2


def test_a_dead_superexec_is_started_again(federation: LocalFederation, handle: Federation, store: FolderStore) -> None:
    handle.wait_ready(SITES)
    executors = wait_until(lambda: superexecs(federation) if len(superexecs(federation)) == 3 else None)
    for pid in executors.values():
        os.kill(pid, signal.SIGKILL)
    old = {*executors.values()}
    wait_until(lambda: (new := superexecs(federation)).keys() == executors.keys() and not old & {*new.values()}, 15)
    assert submit_and_follow(handle, plan(store, "ckpt-000011", [{"CA": 1, "TX": 1}]), store).steps == 2


def superexecs(federation: LocalFederation) -> dict[int | None, int]:
    """Process id of the SuperExec of each SuperLink and SuperNode."""
    return {p.owner: p.pid for p in federation.status().spawned if p.command == "flower-superexec"}


@pytest.mark.long
@pytest.mark.parametrize("part", ["trainer", "supernode"])
def test_a_stopped_process_is_killed_and_replaced(
    federation: LocalFederation, handle: Federation, store: FolderStore, part: str
) -> None:
    handle.wait_ready(SITES)
    before = federation.status()
    pids = {
        "trainer": before.sites["TX"].trainer.pid,
        "supernode": before.sites["TX"].supernode.pid,
    }
    pid = pids[part]
    assert pid is not None
    began = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: not psutil.pid_exists(pid), 120, f"the end of the stopped {part}")
    handle.wait_ready(SITES)
    assert time.monotonic() - began < 40
    log = (federation.folder / "logs" / "supervisor.log").read_text()
    assert "is killed: it has" in log


def test_nodes_are_found_by_asking_when_nothing_is_known(federation: LocalFederation, store: FolderStore) -> None:
    key = plan(store, "ckpt-000009", [{"CA": 1, "TX": 1}])
    with Control(federation.status().superlink.address) as control:
        run_id = control.start_run(asking(store, key))
        wait_until(lambda: (run := control.status(run_id)) is not None and run.finished)
        status = control.status(run_id)
        assert status is not None and status.sub_status == "completed", control.logs(run_id)
        assert store.read_record("scratch/ckpt-000009/1/segment.json", Segment).steps == 2
        assert "round 0: 2 steps by CA, TX" in control.logs(run_id)
        assert control.status(12345) is None


def test_a_second_command_finds_the_first(federation: LocalFederation, home: Path) -> None:
    pid = federation.status().pid
    with LocalFederation(home, experiment(), trainer=STUB).ensure() as found:
        assert found.state().pid == pid
    assert federation.status().pid == pid  # not this block's to stop
    with pytest.raises(
        FederationError, match=r"has no site 'NEW', it was started with CA, TX; run `curtail federation down"
    ):
        LocalFederation(home, experiment(["NEW"]), trainer=STUB).up()


def test_it_is_private_and_silent(federation: LocalFederation) -> None:
    assert federation.folder.stat().st_mode & 0o777 == 0o700
    addresses = set()
    for process in processes_of(federation):
        with suppress(psutil.NoSuchProcess):
            for connection in process.net_connections("tcp"):
                addresses |= {connection.laddr.ip, connection.raddr.ip if connection.raddr else "127.0.0.1"}
    assert addresses == {"127.0.0.1"}


START = """
import sys, time
from pathlib import Path
sys.path[:0] = {tests!r}
from stub_federation import LocalFederation, STUB, experiment
local = LocalFederation(Path({home!r}), experiment(["CA"]), trainer=STUB)
with local.ensure():
    print("ready", flush=True)
    time.sleep(600)
"""


def _owner(home: Path) -> "subprocess.Popen[str]":
    code = START.format(tests=[str(Path(__file__).parent), str(Path(__file__).parents[1])], home=str(home))
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("victim", ["owner", "supervisor"])
def test_sigkill_leaves_nothing(tmp_path: Path, victim: str) -> None:
    store = new_store(tmp_path)
    owner = _owner(tmp_path)
    with ExitStack() as stack:
        stack.callback(owner.wait)
        stack.callback(owner.kill)
        assert owner.stdout is not None and owner.stdout.readline() == "ready\n"
        stack.callback(owner.stdout.close)
        local = LocalFederation(tmp_path, experiment(["CA"]), trainer=STUB)
        # in the middle of a segment, with every kind of process there
        with Control(local.status().superlink.address) as control:
            key = plan(store, "ckpt-000001", [{"CA": 500}], seed=7)
            control.start_run(asking(store, key))
        wait_until(lambda: _busy(local, "CA"))
        family = processes_of(local)
        ports = ports_of(family)
        assert len(family) >= 8 and len(ports) == 3 and listening(ports) == ports
        os.kill(owner.pid if victim == "owner" else local.status().pid, signal.SIGKILL)
        wait_until(lambda: gone(family) and not listening(ports), 8.0)
        assert local.status().state == "down"


@pytest.mark.long
def test_a_command_that_starts_again_at_once_takes_nothing_from_the_one_that_was_killed(tmp_path: Path) -> None:
    """Its federation still starts, and ends with it in a moment."""
    new_store(tmp_path)
    local = LocalFederation(tmp_path, experiment(["CA"]), trainer=STUB)
    owner = _owner(tmp_path)
    with ExitStack() as stack:
        stack.callback(owner.wait)
        stack.callback(owner.kill)
        wait_until(lambda: local.status().state == "starting", 30)
        first = local.status().pid
        owner.kill()
        with local.ensure() as federation:
            assert federation.state().state == "ready" and federation.state().pid != first
        assert owner.stdout is not None
        owner.stdout.close()
    assert local.status().state == "down"


def _busy(local: LocalFederation, site: str) -> bool:
    return Trainer(Federation(local.folder).endpoint(site)).status().busy


def test_a_trainer_that_cannot_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    new_store(tmp_path)
    broken = [sys.executable, "-c", "import sys; sys.exit('no shards for this site; run dagster asset materialize')"]
    local = LocalFederation(tmp_path, experiment(), trainer=broken)
    with pytest.raises(FederationError, match=r"(?s)trainer-(CA|TX) ended with 1 .*no shards for this site"):
        local.up()
    assert local.status().state == "failed"
    assert local.down() is False


def test_down_stops_everything(federation: LocalFederation) -> None:
    family = processes_of(federation)
    ports = ports_of(family)
    assert federation.down() is True and federation.down() is False
    wait_until(lambda: gone(family) and not listening(ports), 5.0)
    assert federation.status() == DOWN
