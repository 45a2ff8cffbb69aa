"""Who waits for whom at a trainer: a clock that the test moves, a trainer that takes a step a turn."""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import save_file
from waiting import wait_until

from curtail_pipeline.federation.liveness import last_beat
from curtail_pipeline.federation.orders import Order, Result, Watch
from curtail_pipeline.federation.simulated import SimulatedSite
from curtail_pipeline.federation.trainer_api import Endpoint, StopOrder
from curtail_pipeline.flower.trainer_client import Trainer
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training import heartbeat as heartbeat_module
from curtail_pipeline.training.heartbeat import HeartbeatWriter
from curtail_pipeline.training.order_queue import FORGOTTEN_S, OrderQueue, Refused
from curtail_pipeline.training.order_server import OrderServer
from curtail_pipeline.training.step_progress import StepProgress
from curtail_pipeline.training.trains import Trains


class SteppingTrainer:
    """Ends an order when the test lets it, and asks before every step whether to stop."""

    def __init__(self, store: FolderStore) -> None:
        self.own, self.name = store, "CA"
        self.store = FolderStore(store.root / "linked")
        """Where a trainer's is behind an order that brought addresses."""
        self.done: list[tuple[str, str]] = []
        self.may_end = threading.Event()

    def train(self, order: Order, progress: object, should_stop: Callable[[], bool], on_phase: object) -> Result:
        while not should_stop():
            if self.may_end.wait(0.01):
                break
        self.done.append((order.key, order.replay))
        return SimulatedSite("CA", self.own)(order)

    def has(self, key: str) -> bool:
        return self.own.exists(key)


class Bench:
    def __init__(self, store: FolderStore, orders: Callable[..., Order]) -> None:
        self.now = 0.0
        self.trainer = SteppingTrainer(store)
        self.ended = threading.Event()
        self.queue = OrderQueue(cast(Trains, self.trainer), store, self.ended, clock=lambda: self.now)
        self.order = orders
        self.thread = threading.Thread(target=self.queue.work)
        self.thread.start()

    def running(self, replay: str) -> bool:
        status = self.queue.status()
        return status.busy and status.replay == replay


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    store = FolderStore(tmp_path)
    weights = "checkpoints/ckpt-000000/model.safetensors"
    store.path(weights).parent.mkdir(parents=True)
    save_file({"a": np.ones((9, 4), np.float32)}, store.path(weights), {"format": "pt"})
    sha256 = file_sha256(store.path(weights))

    def order(key: str, replay: str = "") -> Order:
        content: dict[str, Any] = {
            "key": key, "attempt": 1, "round": 0, "site": "CA", "experiment_uri": "experiment.json",
            "store": str(store.root), "parent": {"key": weights, "sha256": sha256},
            "config": "", "inner_state": "fresh", "first_step": 0, "members": 1, "total_steps": 9, "max_steps": 2,
            "deadline_s": None, "lease": [(1, 0, 99)], "seed": 0, "out": f"scratch/{key}-{replay}.safetensors",
            "replay": replay,
        }  # fmt: skip
        return Order.model_validate(content)

    found = Bench(store, order)
    yield found
    found.trainer.may_end.set()
    found.ended.set()
    found.thread.join(10)


def test_a_live_order_takes_the_trainer_from_a_replay_which_is_done_afterwards(bench: Bench) -> None:
    replay = bench.queue.enter(bench.order("ckpt-000001", "r"))
    wait_until(lambda: bench.running("r"))
    live = bench.queue.enter(bench.order("ckpt-000002"))
    wait_until(lambda: bench.running(""))
    assert not replay.outcome.done() and bench.trainer.done == []
    bench.trainer.may_end.set()
    assert replay.outcome.result(10).status == live.outcome.result(10).status == 200
    assert bench.trainer.done == [("ckpt-000002", ""), ("ckpt-000001", "r")]


def test_a_replay_that_nobody_asks_for_is_dropped_and_one_that_is_asked_for_is_not(bench: Bench) -> None:
    first = bench.queue.enter(bench.order("ckpt-000001", "r"))
    second = bench.queue.enter(bench.order("ckpt-000001", "s"))
    wait_until(lambda: bench.running("r"))
    bench.now += FORGOTTEN_S
    assert bench.queue.enter(bench.order("ckpt-000001", "s")) is second
    bench.now += 1
    assert first.outcome.result(10).status == 409
    wait_until(lambda: bench.running("s"))
    assert bench.trainer.done == []


def test_stopping_a_replay_leaves_a_live_order_alone(bench: Bench) -> None:
    live = bench.queue.enter(bench.order("ckpt-000001"))
    waiting = bench.queue.enter(bench.order("ckpt-000001", "r"))
    wait_until(lambda: bench.running(""))
    assert bench.queue.stop(StopOrder(key="ckpt-000001", attempt=1, replay="r")) is waiting
    assert waiting.outcome.result(10).status == 409
    for other in ({"key": "ckpt-000002"}, {"attempt": 2}, {"replay": "x"}, {"round": 1}):
        assert bench.queue.stop(StopOrder.model_validate({"key": "ckpt-000001", "attempt": 1, **other})) is None
    assert bench.running("") and not live.outcome.done()
    assert bench.queue.stop(StopOrder(key="ckpt-000001", attempt=1, round=0)) is live
    assert live.outcome.result(10).status == 200


def test_an_order_is_ended_through_the_sites_own_store(bench: Bench) -> None:
    order = bench.order("ckpt-000001").model_copy(update={"stop": "stop.json"})
    job = bench.queue.enter(order)
    wait_until(lambda: bench.running(""))
    bench.trainer.own.write_record("stop.json", StopOrder(key=order.key, attempt=order.attempt))
    assert job.outcome.result(10).status == 200 and not bench.trainer.may_end.is_set()


def test_an_order_that_another_server_sends_again_is_the_same(bench: Bench) -> None:
    order = bench.order("ckpt-000001")
    first, second = (
        order.model_copy(
            update={
                "links": Links(get={"k": f"signed {n}"}, put={}),
                "watch": Watch(key="membership/desired.json", generation=n),
            }
        )
        for n in (1, 2)
    )
    job = bench.queue.enter(first)
    assert bench.queue.enter(second) is job and bench.queue.links == second.links
    with pytest.raises(Refused, match="ordered before with other content"):
        bench.queue.enter(second.model_copy(update={"seed": order.seed + 1}))


def test_an_order_that_another_server_sends_again_is_waited_for_and_answered(bench: Bench, tmp_path: Path) -> None:
    order = bench.order("ckpt-000001")
    bench.queue.enter(order.with_links(Links(get={"k": "signed 1"}, put={})))
    wait_until(lambda: bench.running(""))
    bench.queue._note(order, "train")
    server = OrderServer(bench.queue)
    server.start()
    endpoint = tmp_path / "CA.json"
    endpoint.write_text(Endpoint(port=server.port, pid=os.getpid(), token=server.token).model_dump_json())
    try:
        again, answers = order.with_links(Links(get={"k": "signed 2"}, put={})), list[Result]()
        threading.Thread(target=lambda: answers.append(Trainer(endpoint).train(again)), daemon=True).start()
        wait_until(lambda: bench.queue.activity is not None and bench.queue.activity.waited_for, 10)
        bench.trainer.may_end.set()
        assert wait_until(lambda: answers, 10)[0].site == "CA"
    finally:
        server.close()


def test_another_live_order_is_refused_while_one_is_waited_for(bench: Bench) -> None:
    live = bench.queue.enter(bench.order("ckpt-000001"))
    wait_until(lambda: bench.running(""))
    with bench.queue.waited_for(live), pytest.raises(Refused, match="busy with ckpt-000001"):
        bench.queue._note(live.order, "train")
        assert bench.queue.activity is not None and bench.queue.activity.waited_for
        bench.queue.enter(bench.order("ckpt-000002"))
    assert not bench.queue.activity.waited_for, "what a heartbeat says once the sender has hung up"


def test_a_full_disk_is_one_line_and_no_traceback(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    def train(*_: object) -> Result:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "scratch/x.safetensors")

    bench.trainer.train = train  # type: ignore[method-assign]
    outcome = bench.queue.enter(bench.order("ckpt-000001")).outcome.result(5)
    assert outcome.status == 507 and "no space left on the device; free space" in str(outcome.answer)
    (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert line.exc_info is None and "\n" not in line.getMessage()


def test_the_training_thread_alone_moves_the_activity(bench: Bench) -> None:
    order = bench.order("ckpt-000001")
    for told, now in (("fetch", 0), ("compile", 1), (1, 9), (2, 10), (3, 12), ("store", 13)):
        bench.now = now
        progress = told if isinstance(told, str) else StepProgress(told, told, 2.5, 100.0, 100.0, 0.02, None)
        bench.queue._note(order, cast(Any, progress))
    activity = bench.queue.activity
    assert activity is not None and activity.name == order.name
    # the step that compiled is no measure of the others
    assert (activity.phase, activity.count, activity.step_s) == ("store", 6, 1.5)


def test_a_heartbeat_that_cannot_be_written_is_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Full(FolderStore):
        tries = 0

        def write_record(self, key: str, record: object) -> None:
            self.tries += 1
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = Full(tmp_path)
    heartbeat = HeartbeatWriter(store, SimpleNamespace(site="CA", activity=None, links=None))
    heartbeat._closed = cast(Any, SimpleNamespace(wait=lambda _: store.tries >= 3, set=lambda: None))
    heartbeat._beat(heartbeat._write)
    assert store.tries == 3 and [record.getMessage() for record in caplog.records] == [
        "no heartbeat: [Errno 28] No space left on device"
    ]


def test_a_line_that_is_silent_does_not_silence_the_sign_on_the_sites_own_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat_module, "HEARTBEAT_S", 0.02)
    store, held = FolderStore(tmp_path), threading.Event()
    links = SimpleNamespace(write=lambda *_: held.wait(30))
    heartbeat = HeartbeatWriter(store, SimpleNamespace(site="CA", activity=None, links=cast(Any, links)))
    heartbeat.start()
    try:
        first = wait_until(lambda: last_beat(store, "CA"), 10)
        wait_until(lambda: last_beat(store, "CA") not in (None, first), 10)
    finally:
        held.set()
        heartbeat.close()
    assert last_beat(store, "CA") is None
