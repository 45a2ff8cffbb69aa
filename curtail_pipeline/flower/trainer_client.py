"""HTTP to a site's resident trainer."""

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from curtail_pipeline.errors import FederationError, MessageError
from curtail_pipeline.federation.orders import Order, Result
from curtail_pipeline.federation.trainer_api import Endpoint, StopOrder, Stopped, TrainerStatus, Waiting
from curtail_pipeline.storage.records import Json, Record, read_record

_PULSE_S = 5.0
_LONGEST_STEP_S = 120.0


class Trainer:
    """A resident trainer, through its endpoint file. Every call raises FederationError when it cannot be reached."""

    def __init__(self, endpoint: Path) -> None:
        try:
            found = Endpoint.read(endpoint.read_bytes(), str(endpoint))
        except (OSError, MessageError) as error:
            raise FederationError(
                f"no trainer at {endpoint} ({error}); start it with `curtail federation up`"
            ) from error
        self.pid = found.pid
        self._url = f"http://127.0.0.1:{found.port}"
        self._headers = {"Authorization": f"Bearer {found.token}"}

    def status(self, timeout_s: float = 10.0) -> TrainerStatus:
        """What it is doing."""
        return read_record(TrainerStatus, self._call("GET", "/status", timeout_s=timeout_s), "the trainer's status")

    def stop(self, order: StopOrder, timeout_s: float) -> Stopped:
        """End that order after its step; nothing happens to another one."""
        return read_record(Stopped, self._call("POST", "/stop", order, timeout_s=timeout_s), "the trainer's answer")

    def replay(self, order: Order) -> Result | Waiting:
        """A replay's order: its result, or within a second that it is not done. Send it again until it is."""
        found = self._call("POST", "/train", order, timeout_s=_LONGEST_STEP_S)
        if isinstance(found, Mapping) and "running" in found:
            return read_record(Waiting, found, "the trainer's answer")
        return Result.read(found, "the trainer's result")

    def _call(self, method: str, path: str, body: Record | None = None, timeout_s: float | None = 10.0) -> Json:
        """The JSON answer of a request; no time limit when `timeout_s` is None.

        Raises:
            FederationError: no connection, no answer in time, or an answer that says what went wrong.
        """
        headers = {**self._headers, "Content-Type": "application/json"}
        try:
            with httpx.Client(trust_env=False, verify=False, timeout=timeout_s) as client:
                sent = body.model_dump_json() if body is not None else None
                response = client.request(method, self._url + path, content=sent, headers=headers)
                content: Json = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise FederationError(
                f"the trainer (process {self.pid}) did not answer {path}: {type(error).__name__} {error}; see its log"
            ) from error
        if response.status_code >= 400:
            reason = content.get("error", content) if isinstance(content, Mapping) else content
            raise FederationError(f"the trainer answered {response.status_code}: {reason}")
        return content

    def train(self, order: Order, patience: int = 6) -> Result:
        """The result of a live order. As long as the trainer answers `/status`, there is no time limit.

        A trainer that still works on another round, of a segment that was given up, is told to stop first. After
        `patience` unanswered pulses (one every 5 s) the order is given up.
        """
        self._make_room(order)
        outcome: list[Json | FederationError] = []
        done = threading.Event()

        def work() -> None:
            try:
                outcome.append(self._call("POST", "/train", order, timeout_s=None))
            except FederationError as error:
                outcome.append(error)
            finally:
                done.set()

        threading.Thread(target=work, daemon=True, name="order").start()
        missed = 0
        while not done.wait(_PULSE_S):
            try:
                self.status(timeout_s=_PULSE_S)
                missed = 0
            except FederationError as error:
                missed += 1
                if missed >= patience:
                    raise FederationError(f"the order was given up: {error}") from error
        if not outcome:
            raise FederationError(f"the trainer (process {self.pid}) was asked in vain; see its agent's log")
        (found,) = outcome
        if isinstance(found, FederationError):
            raise found
        return Result.read(found, "the trainer's result")

    def _make_room(self, order: Order) -> None:
        def busy_elsewhere() -> StopOrder | None:
            status = self.status()
            if not status.busy or status.key is None or status.attempt is None or status.replay:
                return None  # a replay gives way by itself
            same = status.works_on(order.key, order.attempt, order.replay) and status.round == order.round
            return None if same else StopOrder(key=status.key, attempt=status.attempt, round=status.round)

        if (other := busy_elsewhere()) is not None:
            self.stop(other, _LONGEST_STEP_S)
            deadline = time.monotonic() + _LONGEST_STEP_S
            while busy_elsewhere() is not None:
                if time.monotonic() > deadline:
                    raise FederationError(f"the trainer (process {self.pid}) did not end an earlier round; see its log")
                time.sleep(0.1)
