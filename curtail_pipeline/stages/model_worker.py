"""Making and evaluating models elsewhere: a control plane without torch asks a worker that has it.

`CURTAIL_WORKER` is the worker's address; without it both are done in the process that asks. The worker (`curtail
worker`) opens the same experiment on the same store, and answers whoever reaches its port, so that it belongs on the
network of the control plane alone. What it is asked for is done once however often it is asked.

| request | answer |
|---|---|
| `POST /initialise` | `Made`: `ckpt-000000` is committed |
| `POST /evaluate` (a `Wanted`) | the `Evaluation` |

What is refused is a `Refusal` with status 400.
"""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import httpx

from curtail_pipeline.errors import MessageError, TrainingError
from curtail_pipeline.federation.trainer_api import Refusal
from curtail_pipeline.storage.records import Message
from curtail_pipeline.training.heldout_loss import Evaluation

WORKER_ENV = "CURTAIL_WORKER"
AWAY_S = 60.0
"""How long a worker may be away: it is started again by whoever watches over it."""
PAUSE_S = 1.0
STILL_THERE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A worker that dies closes the connection; its machine is asked after 30 s without a word, and given up 30 s later."""

T = TypeVar("T", bound=Message)


class Wanted(Message):
    """A committed checkpoint, by the store it is in: the experiment's, or a branch's beside it."""

    store: str
    key: str


class Made(Message):
    key: str


@dataclass(frozen=True)
class ModelWorker:
    """The worker at an address (`http://host:port`).

    Raises:
        TrainingError: (every method) no worker answers, or what it was asked for failed there, with the reason.
    """

    url: str

    @classmethod
    def of_environment(cls) -> "ModelWorker | None":
        """None where models are made in this process."""
        url = os.environ.get(WORKER_ENV)
        return cls(url.rstrip("/")) if url else None

    def initialise(self) -> Made:
        return self._asked("initialise", None, Made)

    def evaluate(self, wanted: Wanted) -> Evaluation:
        return self._asked("evaluate", wanted, Evaluation)

    def _asked(self, what: str, body: Message | None, kind: type[T]) -> T:
        content = body.model_dump_json() if body is not None else "{}"
        timeout = httpx.Timeout(10.0, read=None)  # a large model takes a while
        transport = httpx.HTTPTransport(trust_env=False, socket_options=STILL_THERE)
        with httpx.Client(trust_env=False, timeout=timeout, transport=transport) as client:
            answer = self._patiently(what, lambda: client.post(f"{self.url}/{what}", content=content))
        try:
            if answer.status_code == 400:
                reason = Refusal.model_validate_json(answer.content).error
                raise TrainingError(f"the worker at {self.url} cannot {what}: {reason}")
            if answer.status_code != 200:
                raise TrainingError(f"the worker at {self.url} answered {answer.status_code} to {what}; see its log")
            return kind.read(answer.content, f"the answer of the worker at {self.url}")
        except (MessageError, ValueError) as error:
            raise TrainingError(f"{' '.join(str(error).split())}; is {WORKER_ENV} the address of a worker?") from error

    def _patiently(self, what: str, call: Callable[[], httpx.Response]) -> httpx.Response:
        deadline = time.monotonic() + AWAY_S
        while True:
            try:
                return call()
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    raise TrainingError(
                        f"no worker answers at {self.url} ({type(error).__name__}) to {what}; start it with `curtail "
                        f"worker`, or correct {WORKER_ENV}"
                    ) from error
            except httpx.InvalidURL as error:
                raise TrainingError(f"{WORKER_ENV} is {self.url!r}, which is no http://host:port: {error}") from error
            time.sleep(PAUSE_S)
