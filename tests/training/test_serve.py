"""The resident trainer as a process of its own, over HTTP."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest
from training_case import SITE, changed, make_experiment, make_order, next_order
from waiting import wait_until

from curtail_pipeline.federation.orders import Order, Result
from curtail_pipeline.scheduling.reconcile import Desired
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.times import parse_utc, utc_now

LONG = {"max_steps": 100_000, "total_steps": 100_000, "lease": [(epoch, 0, 100) for epoch in range(1, 2001)]}
"""An order that ends only when something ends it."""


def command(store, endpoint, *more):
    module = [sys.executable, "-m", "curtail_pipeline.training.serve"]
    return [*module, "--site", SITE, "--store", str(store.root), "--endpoint", str(endpoint), *more]


def read(endpoint):
    return json.loads(endpoint.read_text()) if endpoint.exists() else None


class Trainer:
    def __init__(self, store, folder: Path):
        self.store, self.endpoint = store, folder / "endpoint.json"
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command(store, self.endpoint, "--parent-pid", str(os.getpid())), stdout=log, stderr=log
            )
        self.address = wait_until(lambda: read(self.endpoint) or self.process.poll() is not None)
        assert isinstance(self.address, dict), self.log.read_text()

    def client(self, token=None):
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.address['port']}",
            headers={"Authorization": f"Bearer {token or self.address['token']}"},
            timeout=300,
            trust_env=False,
        )

    def status(self):
        with self.client() as client:
            return client.get("/status").json()

    def post(self, path, content=None):
        """The answer to an order, or to whatever else is sent as JSON."""
        text = content.model_dump_json() if isinstance(content, Order) else json.dumps(content)
        with self.client() as client:
            return client.post(path, content=text)

    def train(self, order):
        return Result.read(self.post("/train", order).content, "the result")

    def post_in_background(self, path, content):
        """The list to which the answer is added."""
        answers = []
        thread = threading.Thread(target=lambda: answers.append(self.post(path, content)))
        thread.start()
        return answers, thread

    def step(self):
        return self.status()["steps"]


@pytest.fixture(scope="module")
def filled(shared):
    return shared


@pytest.fixture(scope="module")
def trainer(filled, tmp_path_factory):
    trainer = Trainer(filled, tmp_path_factory.mktemp("trainer"))
    yield trainer
    assert trainer.status()["busy"] is False
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.process.wait(120) == 0, trainer.log.read_text()
    assert not trainer.endpoint.exists()
    assert f"{SITE}.json" not in filled.list("agents")


def waited_for_a_processor(trainer):
    """Seconds that the process's threads could have run and had none, as the kernel counts them."""
    tasks = Path(f"/proc/{trainer.process.pid}/task").glob("*/schedstat")
    return sum(int(task.read_text().split()[1]) for task in tasks) / 1e9


def test_the_model_is_built_before_the_first_order_comes(trainer, filled):
    order, starved = make_order(filled, key="ckpt-000009", **LONG), waited_for_a_processor(trainer)
    sent = utc_now()
    answers, thread = trainer.post_in_background("/train", order)
    phases = []

    def steps():
        status = trainer.status()
        phases.append(status["phase"])
        return (status["steps"] or 0) >= 2

    wait_until(steps)
    starved_s = waited_for_a_processor(trainer) - starved  # a full machine is not the trainer's fault
    assert "compile" not in phases and phases[-1] == "train"
    assert stop(trainer, order)
    thread.join(20)
    assert answers[0].status_code == 200
    lines = trainer.endpoint.with_suffix(".steps.jsonl").read_text().splitlines()
    assert len(lines) == answers[0].json()["steps"] and json.loads(lines[-1])["loss"] == answers[0].json()["loss_last"]
    first = parse_utc(json.loads(lines[0])["at"])
    assert (first - sent).total_seconds() <= 3 + starved_s, "the first step comes late"
    log = trainer.log.read_text()
    assert log.count("a step takes") == 1 and log.index("built in") < log.index("ready on port")


def test_an_order_is_done_once(trainer, filled):
    order = make_order(filled, key="ckpt-000010")
    first = trainer.post("/train", order)
    assert first.status_code == 200
    result = first.json()
    assert result["steps"] == 3
    written = filled.path(order.out).stat().st_mtime_ns  # were it trained again, it would be written again
    assert trainer.post("/train", order).json() == result
    assert filled.path(order.out).stat().st_mtime_ns == written
    other = trainer.post("/train", changed(order, max_steps=2))
    assert other.status_code == 409
    assert "ckpt-000010 attempt 0 round 0 was ordered before with other content" in other.json()["error"]


def test_an_answer_whose_weights_are_gone_is_worked_out_again(trainer, filled):
    order = make_order(filled, key="ckpt-000019")
    first = trainer.train(order)
    filled.delete(order.out)
    assert trainer.train(order).weights == first.weights
    assert filled.exists(order.out)


def stop(trainer, order, **changes):
    wanted = {"schema": 1, **{name: getattr(order, name) for name in ("key", "attempt", "replay", "round")}, **changes}
    return trainer.post("/stop", wanted).json()["stopped"]


def repeated(trainer, order):
    """The result of a replay's order, asked for until it is there."""
    return wait_until(lambda: (a := trainer.post("/train", order)).status_code == 200 and Result.read(a.content, "it"))


def test_a_replay_gives_way_to_a_live_order_and_is_done_later(trainer, filled):
    once = trainer.train(make_order(filled, key="ckpt-000020", max_steps=40, lease=LONG["lease"]))
    again = make_order(
        filled, key="ckpt-000020", max_steps=40, lease=LONG["lease"], replay="r1", out="scratch/replays/r1/it"
    )
    assert trainer.post("/train", changed(again, max_steps=100_000, replay="r0")).json() == {"running": True}
    wait_until(lambda: (trainer.step() or 0) >= 2)
    assert trainer.status()["replay"] == "r0"
    assert trainer.post("/train", again).json() == {"running": False}, "replays come one after the other"

    live = make_order(filled, key="ckpt-000021", **LONG)
    answers, thread = trainer.post_in_background("/train", live)
    wait_until(lambda: trainer.status()["key"] == "ckpt-000021" and trainer.step())
    assert trainer.post("/train", again).json() == {"running": False}
    # whoever gives up the replay, or an earlier round or attempt, ends nothing of the live segment
    assert (
        not stop(trainer, live, round=7) and not stop(trainer, live, attempt=1) and not stop(trainer, live, replay="r1")
    )
    assert stop(trainer, changed(again, replay="r0"))
    before = trainer.step()
    wait_until(lambda: trainer.step() > before + 5)
    assert trainer.status()["key"] == "ckpt-000021"
    assert stop(trainer, live)
    thread.join(20)
    assert answers[0].json()["steps"] > before
    states = filled.list(f"inner_state/{SITE}")
    done = repeated(trainer, again)
    assert done.weights.sha256 == once.weights.sha256 and done.inner_state == once.inner_state
    assert filled.list(f"inner_state/{SITE}") == states, "a replay's inner states are its own"
    assert len(filled.list(f"scratch/replays/r1/inner_state/{SITE}")) == 1


def test_rounds_in_the_process_are_the_rounds_of_the_library(trainer, filled):
    from curtail_pipeline.training.trainer import SiteTrainer

    order = make_order(filled, key="ckpt-000011")
    first = trainer.train(order)
    second = trainer.train(next_order(order, first))
    library = SiteTrainer(filled, SITE, make_experiment())
    assert library.train(order).weights == first.weights
    assert library.train(next_order(order, first)).weights == second.weights


def test_status_and_stop(trainer, filled):
    idle = trainer.status()
    assert idle["site"] == SITE and idle["pid"] == trainer.process.pid
    assert (idle["busy"], idle["key"], idle["round"], idle["step"]) == (False, None, None, None)
    order = make_order(filled, key="ckpt-000012", round=4, first_step=1000, members=2, **LONG)
    assert not stop(trainer, order)
    assert trainer.post("/stop").status_code == 400
    answers, thread = trainer.post_in_background("/train", order)
    wait_until(lambda: (trainer.step() or 0) >= 2)
    busy = trainer.status()
    assert (busy["busy"], busy["key"], busy["round"]) == (True, "ckpt-000012", 4)
    assert busy["step"] == 1000 + 2 * (busy["steps"] - 1)
    assert busy["loss"] > 0 and busy["tokens_per_s"] > 0

    same, other_thread = trainer.post_in_background("/train", order)
    refused = trainer.post("/train", make_order(filled, key="ckpt-000013"))
    assert refused.status_code == 409
    assert f"site {SITE} is busy with ckpt-000012 attempt 0 round 4" in refused.json()["error"]

    assert stop(trainer, order)
    assert trainer.status()["busy"] is False
    for waiting in (thread, other_thread):
        waiting.join(20)
    result = answers[0].json()
    assert result["stop"] == "membership" and result["steps"] >= 2
    assert same[0].json() == result


def test_an_order_nobody_waits_for_gives_way(trainer, filled):
    with trainer.client() as client, pytest.raises(httpx.ReadTimeout):
        client.post("/train", content=make_order(filled, key="ckpt-000014", **LONG).model_dump_json(), timeout=1.5)
    assert trainer.status()["key"] == "ckpt-000014"
    wait_until(lambda: trainer.post("/train", make_order(filled, key="ckpt-000015")).status_code == 200)
    assert trainer.status()["busy"] is False


def test_a_newer_membership_ends_the_round(trainer, filled):
    def desire(generation, state):
        desired = Desired(generation=generation, states={SITE: state}, reasons={}, reason="test", at=utc_now())
        filled.write_record("membership.json", desired)

    desire(4, "off")  # an older wish than the order's
    watch = {"key": "membership.json", "generation": 4}
    answers, thread = trainer.post_in_background("/train", make_order(filled, key="ckpt-000016", watch=watch, **LONG))
    wait_until(lambda: (trainer.step() or 0) >= 2)
    desire(5, "train")
    before = trainer.step()
    wait_until(lambda: trainer.step() > before + 5)
    desire(6, "warm")
    thread.join(20)
    assert answers[0].json()["stop"] == "membership"
    assert answers[0].json()["steps"] > before


def test_bad_requests(trainer, filled):
    with trainer.client(token="wrong") as client:
        for method, path in (("GET", "/status"), ("POST", "/train"), ("POST", "/shutdown")):
            answer = client.request(method, path, json={})
            assert answer.status_code == 401 and "Bearer" in answer.json()["error"]
    with trainer.client() as client:
        assert client.post("/train", content=b"{not json").status_code == 400
        assert client.get("/train").status_code == 404
    assert "has schema None" in trainer.post("/train", {"key": "ckpt-000017"}).json()["error"]
    missing = trainer.post("/train", {"schema": 1, "key": "ckpt-000017"})
    assert missing.status_code == 400 and "attempt: Field required" in missing.json()["error"]
    other = trainer.post("/train", make_order(filled, site="SPP_TX"))
    assert other.status_code == 400 and "for site 'SPP_TX'" in other.json()["error"]

    order = make_order(filled, key="ckpt-000018", parent={"key": "none.safetensors", "sha256": "0" * 64})
    failed = trainer.post("/train", order)
    assert failed.status_code == 400 and "none.safetensors is not in the store" in failed.json()["error"]
    mended = trainer.post("/train", changed(order, parent=make_order(filled).parent))
    assert mended.status_code == 200


def test_sign_of_life(trainer, filled):
    wait_until(lambda: (filled.root / "agents" / f"{SITE}.json").exists())
    first = filled.read_json(f"agents/{SITE}.json")
    assert first["site"] == SITE and first["pid"] == trainer.process.pid
    assert abs((utc_now() - parse_utc(first["at"])).total_seconds()) < 15
    wait_until(lambda: filled.read_json(f"agents/{SITE}.json")["at"] != first["at"])


def test_endpoint_is_for_its_owner_only(trainer):
    assert trainer.endpoint.stat().st_mode & 0o077 == 0


def test_a_second_trainer_is_refused(trainer, filled, tmp_path):
    second = subprocess.run(command(filled, tmp_path / "second.json"), capture_output=True, text=True, timeout=300)
    assert second.returncode == 1
    assert f"site {SITE} already has a live trainer" in second.stderr and "Traceback" not in second.stderr
    assert not (tmp_path / "second.json").exists()


def test_an_unknown_site_is_refused(filled, tmp_path):
    argv = command(filled, tmp_path / "endpoint.json")
    argv[argv.index(SITE)] = "MARS"
    refused = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert refused.returncode == 1 and "unknown site 'MARS'" in refused.stderr


PARENT = """
import os, subprocess, sys, time
subprocess.Popen([*sys.argv[1:], "--parent-pid", str(os.getpid())])
time.sleep(600)
"""


@pytest.mark.long
def test_killing_the_parent_leaves_nothing(filled, tmp_path):
    """In the middle of a round, with SIGKILL: no process, also where it was stopped, no port, no half-written file."""
    shutil.copytree(filled.root, tmp_path / "store", ignore=shutil.ignore_patterns("agents"))
    store = FolderStore(tmp_path / "store")
    endpoint, log = tmp_path / "endpoint.json", tmp_path / "log"
    with log.open("wb") as stream:
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, *command(store, endpoint)], stdout=stream, stderr=stream
        )
    address = wait_until(lambda: read(endpoint))
    trainer = psutil.Process(address["pid"])
    headers = {"Authorization": f"Bearer {address['token']}"}
    url = f"http://127.0.0.1:{address['port']}"

    def order():
        with pytest.raises(httpx.HTTPError):
            content = make_order(store, **LONG).model_dump_json()
            httpx.post(f"{url}/train", content=content, headers=headers, timeout=0.2, trust_env=False)

    order()
    wait_until(lambda: (httpx.get(f"{url}/status", headers=headers, trust_env=False).json()["steps"] or 0) > 1)
    trainer.suspend()
    parent.kill()
    parent.wait()
    trainer.wait(60)
    assert not endpoint.exists(), log.read_text()
    assert f"{SITE}.json" not in store.list("agents")
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", address["port"])) != 0
    assert not [p for p in store.root.rglob("*") if p.name.endswith(".tmp")]

    # The lock went with it: the site can have a trainer again, which ends when asked to.
    again = subprocess.Popen(command(store, endpoint), stderr=subprocess.DEVNULL)
    address = wait_until(lambda: read(endpoint))
    stopped = httpx.post(
        f"http://127.0.0.1:{address['port']}/shutdown",
        headers={"Authorization": f"Bearer {address['token']}"},
        trust_env=False,
    )
    assert stopped.json() == {"stopped": False}
    assert again.wait(120) == 0
