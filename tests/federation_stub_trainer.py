"""A resident trainer's HTTP interface over a simulated site, for tests of the federation: starts in half a second.

The order's seed chooses what happens: 666 makes `/train` fail, 7 makes every step last 0.2 s.
"""

import argparse
import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from curtail_pipeline.federation.orders import agent_key
from curtail_pipeline.federation.simulated import SimulatedSite
from curtail_pipeline.flower.processes import exit_with
from curtail_pipeline.storage.store import Store

TOKEN = "stub"


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--site", "--store", "--endpoint"):
        parser.add_argument(name, required=True)
    parser.add_argument("--parent-pid", type=int, required=True)
    options = parser.parse_args()
    exit_with(options.parent_pid)
    store = Store(options.store)
    site = SimulatedSite(options.site, store)
    stop = threading.Event()
    state: dict[str, Any] = {"site": options.site, "busy": False, "round": None, "step": None, "loss": 2.0}

    def train(order: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if order["seed"] == 666:
            return 500, {"error": f"shards/{options.site} is corrupt"}
        stop.clear()
        state.update(busy=True, key=order["key"], round=order["round"])
        if order["seed"] == 7:
            for step in range(order["max_steps"]):
                state.update(step=order["first_step"] + step, tokens_per_s=160.0)
                if stop.wait(0.2):
                    order = order | {"max_steps": step + 1}
                    break
        result = site(order)
        state.update(busy=False)
        return 200, result

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(200, state)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
            if self.headers["Authorization"] != f"Bearer {TOKEN}":
                self.reply(401, {"error": "wrong token"})
            elif self.path == "/train":
                self.reply(*train(body))
            else:
                stop.set()
                self.reply(200, {"stopped": True})

        def reply(self, code: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
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
    scratch.write_text(json.dumps({"port": server.server_port, "pid": os.getpid(), "token": TOKEN}))
    scratch.replace(endpoint)
    while True:
        store.write_json(agent_key(options.site), {"site": options.site, "pid": os.getpid(), "at": time.time()})
        time.sleep(0.5)


if __name__ == "__main__":
    main()
