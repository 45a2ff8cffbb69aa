"""What lives and does nothing is found: real processes, heartbeats as trainers write them."""

import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from waiting import wait_until

from curtail_pipeline.federation.orders import Activity, Heartbeat, agent_key
from curtail_pipeline.flower.hangs import Hangs, healthy, is_stopped
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import StoreUnavailable
from curtail_pipeline.times import EPOCH, seconds

LIMITS = LivenessLimits(liveness_s=10, transfer_s=50, compile_s=50)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        yield running
        running.kill()


def beat(store: FolderStore, pid: int, at: float, count: int | None) -> None:
    activity = None
    if count is not None:
        activity = Activity(key="k", attempt=1, replay="", round=0, phase="train", count=count, step_s=1.0)
    life = Heartbeat(site="CA", pid=pid, at=EPOCH + seconds(at), busy=count is not None, activity=activity)
    store.write_record(agent_key("CA"), life)


def test_a_stopped_process_is_found_and_a_continued_one_is_not(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    hangs = Hangs(FolderStore(tmp_path), LIMITS)
    assert hangs.found([process.pid], {}, None, 0.0) == {}
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_stopped(process.pid))
    assert not any(hangs.found([process.pid], {}, None, now) for now in range(5, 16))
    assert hangs.found([process.pid], {}, None, 16.0) == {process.pid: "it has been stopped for 11 s"}
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: not is_stopped(process.pid))
    assert hangs.found([process.pid], {}, None, 17.0) == {}
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: is_stopped(process.pid))
    hangs.found([process.pid], {}, None, 18.0)
    assert hangs.found([process.pid], {}, None, 90.0) == {}  # whoever looks was stopped too


def test_a_trainer_whose_training_thread_hangs_is_found(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    hangs = Hangs(store, LIMITS)

    def found(now: float, count: int | None, pid: int = 7) -> dict[int, str]:
        beat(store, pid, now, count)
        return hangs.found([7], {"CA": 7}, None, now)

    assert not any(found(now, None, pid=6) for now in range(0, 60, 2))  # still starting: the sign is its predecessor's
    assert not any(found(now, None) for now in range(60, 120, 2))  # idle for as long as nobody wants anything
    assert not any(found(now, now) for now in range(120, 180, 2))
    assert next(now for now in range(180, 200, 2) if found(now, 5)) == 192
    beat(store, 6, 193, None)  # another process of the site: no sign of this one, and no reason to end it at once
    assert "no progress" in hangs.found([7], {"CA": 7}, None, 193)[7]
    store.delete(agent_key("CA"))
    assert "no heartbeat" in [hangs.found([7], {"CA": 7}, None, now) for now in range(194, 211)][-1][7]


def test_limits_that_come_later_count_for_what_is_under_way(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    hangs = Hangs(store, LIMITS)

    def found(now: float) -> dict[int, str]:
        activity = Activity(key="k", attempt=1, replay="", round=0, phase="fetch", count=1)
        life = Heartbeat(site="CA", pid=7, at=EPOCH + seconds(now), busy=True, activity=activity)
        store.write_record(agent_key("CA"), life)
        return hangs.found([7], {"CA": 7}, None, now)

    assert not any(found(now) for now in range(0, 50, 2))
    hangs.hold_to(LivenessLimits(transfer_s=100))
    assert next(now for now in range(50, 120, 2) if found(now)) == 102


def test_an_outage_of_the_store_is_no_trainers_death(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(key: str) -> bytes:
        raise StoreUnavailable(f"{key}: nobody answers")

    store = FolderStore(tmp_path)
    hangs = Hangs(store, LIMITS)
    beat(store, 7, 0, 1)
    assert hangs.found([7], {"CA": 7}, None, 0) == {}
    with monkeypatch.context() as patch:
        patch.setattr(store, "read_bytes", away)
        assert not any(hangs.found([7], {"CA": 7}, None, now) for now in range(2, 40, 2))
    assert hangs.found([7], {"CA": 7}, None, 46) == {}
    assert "no heartbeat for 12 s" in hangs.found([7], {"CA": 7}, None, 50)[7]


def test_a_superlink_that_accepts_and_never_answers_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curtail_pipeline.flower.hangs.ANSWER_S", 0.05)
    hangs = Hangs(FolderStore(tmp_path), LIMITS)
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        address = f"127.0.0.1:{frozen.getsockname()[1]}"
        assert hangs.found([1], {}, (1, address), 0.0) == {}
        assert not any(hangs.found([1], {}, (1, address), now) for now in (4, 8))
        assert hangs.found([1], {}, (1, address), 11.0) == {1: "it has not answered for 11 s"}

        def serve() -> None:
            with suppress(OSError):
                while True:
                    line, _ = frozen.accept()
                    with line:
                        line.recv(1000)
                        line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        wait_until(lambda: healthy(address, 1.0))
        assert hangs.found([1], {}, (1, address), 12.0) == {}
