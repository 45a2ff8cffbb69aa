"""HTTP to a site's resident trainer."""

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from curtail_pipeline.errors import FederationError

_PULSE_S = 5.0
_LONGEST_STEP_S = 120.0


class Trainer:
    """A resident trainer, through its endpoint file. Every call raises FederationError when it cannot be reached."""

    def __init__(self, endpoint: Path) -> None:
        try:
            found = json.loads(endpoint.read_text(encoding="utf-8"))
            self.pid = int(found["pid"])
            self._url = f"http://127.0.0.1:{int(found['port'])}"
            self._headers = {"Authorization": f"Bearer {found['token']}"}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FederationError(
                f"no trainer at {endpoint} ({error}); start it with `curtail federation up`"
            ) from error

    def call(self, method: str, path: str, body: Any = None, timeout_s: float | None = 10.0) -> Any:
        """The JSON answer of a request; no time limit when `timeout_s` is None.

        Raises:
            FederationError: no connection, no answer in time, or an answer that says what went wrong.
        """
        try:
            with httpx.Client(trust_env=False, verify=False, timeout=timeout_s) as client:
                response = client.request(method, self._url + path, json=body, headers=self._headers)
                content = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise FederationError(
                f"the trainer (process {self.pid}) did not answer {path}: {type(error).__name__} {error}; see its log"
            ) from error
        if response.status_code >= 400:
            reason = content.get("error", content) if isinstance(content, dict) else content
            raise FederationError(f"the trainer answered {response.status_code}: {reason}")
        return content

    def train(self, order: Mapping[str, Any], patience: int = 6) -> dict[str, Any]:
        """The result of an order. As long as the trainer answers `/status`, there is no time limit.

        A trainer that still works on another round, of a segment that was given up, is told to stop first. After
        `patience` unanswered pulses (one every 5 s) the order is given up.
        """
        self._make_room(order)
        outcome: dict[str, Any] = {}
        done = threading.Event()

        def work() -> None:
            try:
                outcome["result"] = self.call("POST", "/train", dict(order), timeout_s=None)
            except FederationError as error:
                outcome["error"] = error
            finally:
                done.set()

        threading.Thread(target=work, daemon=True, name="order").start()
        missed = 0
        while not done.wait(_PULSE_S):
            try:
                self.call("GET", "/status", timeout_s=_PULSE_S)
                missed = 0
            except FederationError as error:
                missed += 1
                if missed >= patience:
                    raise FederationError(f"the order was given up: {error}") from error
        if "error" in outcome:
            raise outcome["error"]
        result: dict[str, Any] = outcome["result"]
        return result

    def _make_room(self, order: Mapping[str, Any]) -> None:
        def busy_elsewhere() -> bool:
            status = self.call("GET", "/status")
            return bool(status["busy"]) and (status.get("key"), status.get("round")) != (order["key"], order["round"])

        if busy_elsewhere():
            self.call("POST", "/stop", {}, timeout_s=_LONGEST_STEP_S)
            deadline = time.monotonic() + _LONGEST_STEP_S
            while busy_elsewhere():
                if time.monotonic() > deadline:
                    raise FederationError(f"the trainer (process {self.pid}) did not end an earlier round; see its log")
                time.sleep(0.1)
