"""A resident trainer's HTTP interface over a simulated site, for tests of the federation: starts in half a second.

The order's seed chooses what happens: 666 makes `/train` fail, 7 makes every step last 0.2 s.
An order ends after its step when the round was merged without it.
"""

import argparse
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from pydantic import BaseModel

from curtail_pipeline.federation.orders import Activity, Heartbeat, Order, agent_key
from curtail_pipeline.federation.simulated import SimulatedSite
from curtail_pipeline.federation.trainer_api import Endpoint, Refusal, StopOrder, Stopped, TrainerStatus
from curtail_pipeline.flower.processes import exit_with
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.times import utc_now

TOKEN = "stub"


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--site", "--store", "--endpoint"):
        parser.add_argument(name, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args()
    exit_with(options.parent_pid)
    store = FolderStore(options.store)
    site = SimulatedSite(options.site, store)
    stop = threading.Event()
    idle = TrainerStatus(
        site=options.site, pid=os.getpid(), busy=False, key=None, attempt=None, replay=None, round=None, step=None,
        steps=None, loss=2.0,
        tokens_per_s=None,
    )  # fmt: skip
    state = [idle]

    def train(order: Order) -> tuple[int, BaseModel]:
        if order.seed == 666:
            return 500, Refusal(error=f"shards/{options.site} is corrupt")
        stop.clear()
        busy = {"busy": True, **order.model_dump(include={"key", "attempt", "replay", "round"})}
        state[0] = idle.model_copy(update=busy)
        if order.seed == 7:
            for step in range(order.max_steps):
                at = {"step": order.first_step + step, "tokens_per_s": 160.0}
                state[0] = idle.model_copy(update=busy | at)
                if stop.wait(0.2) or (order.late and store.exists(order.late)):
                    order = order.model_copy(update={"max_steps": step + 1})
                    break
        result = site(order)
        state[0] = idle
        return 200, result

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(401, Refusal(error="wrong token")) if self.stranger() else self.reply(200, state[0])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            if self.stranger():
                self.reply(401, Refusal(error="wrong token"))
            elif self.path == "/train":
                self.reply(*train(Order.read(body, "the order")))
            else:
                wanted = StopOrder.read(body, "what to stop")
                mine = state[0].works_on(wanted.key, wanted.attempt, wanted.replay)
                if mine:
                    stop.set()
                self.reply(200, Stopped(stopped=mine))

        def stranger(self) -> bool:
            return self.headers["Authorization"] != f"Bearer {TOKEN}"

        def reply(self, code: int, content: BaseModel) -> None:
            data = content.model_dump_json().encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = Path(options.endpoint)
    endpoint.parent.mkdir(parents=True, exist_ok=True)
    scratch = endpoint.with_suffix(".tmp")
    scratch.write_text(Endpoint(port=server.server_port, pid=os.getpid(), token=TOKEN).model_dump_json())
    scratch.replace(endpoint)
    while True:
        now = state[0]
        activity = now.busy and Activity(
            **now.model_dump(include={"key", "attempt", "replay", "round"}),
            phase="train",
            count=now.step or 0,
            step_s=0.2,
        )
        beat = Heartbeat(site=options.site, pid=os.getpid(), at=utc_now(), busy=now.busy, activity=activity or None)
        store.write_record(agent_key(options.site), beat)
        time.sleep(0.5)


if __name__ == "__main__":
    main()
