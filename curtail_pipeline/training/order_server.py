"""What the resident trainer's process does: takes orders over HTTP, works them off one at a time, shows life."""

import hmac
import json
import logging
import os
import queue
import secrets
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from curtail_pipeline.errors import CurtailError, StoreError
from curtail_pipeline.federation.orders import Heartbeat, Order, Watch, agent_key
from curtail_pipeline.storage.store import Store
from curtail_pipeline.times import utc_now
from curtail_pipeline.training.trainer import SiteTrainer

log = logging.getLogger("curtail.trainer")

HEARTBEAT_S = 2.0
WATCH_S = 0.5
POLL_S = 0.5
FAREWELL_S = 5.0
"""How long an ending trainer waits for its last answers to be sent."""
REMEMBERED = 64
"""Answers kept for orders that are sent again."""
LONGEST_BODY = 64 << 20


@dataclass
class _Job:
    order: Order
    done: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    waiting: int = 0
    """Senders that still wait for the answer."""
    status: int = 0
    answer: dict[str, Any] = field(default_factory=dict)


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class TrainerAgent:
    """Serves one `SiteTrainer`.

    Threads: HTTP requests and the heartbeat have their own; orders run in the one that calls `work`.

    Args:
        trainer: does the work.
        ended: set from outside (signal, death of the parent) to end `work` after the current step.
    """

    def __init__(self, trainer: SiteTrainer, ended: threading.Event) -> None:
        self.trainer = trainer
        self.token = secrets.token_urlsafe(32)
        self._ended = ended
        self._guard = threading.Lock()
        self._jobs: dict[tuple[str, int, int], _Job] = {}
        self._current: _Job | None = None
        self._queue: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._progress: dict[str, Any] = {}
        self._answering = 0
        self._answered = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    @property
    def site(self) -> str:
        return self.trainer.site.name

    @property
    def _ending(self) -> str:
        return f"the trainer of site {self.site} is ending; start it and send the order again"

    def start(self) -> None:
        """Listen and show life."""
        threading.Thread(target=self._server.serve_forever, name="http", daemon=True).start()
        self._heart.start()

    def work(self) -> None:
        """Work off orders until ended."""
        while not self._ended.is_set():
            try:
                job = self._queue.get(timeout=0.2)
            except queue.Empty:
                continue
            self._run(job)
        with self._guard:
            if self._current is not None:  # it came while the last one was ending
                self._current.status, self._current.answer = 503, {"error": self._ending}
                self._current.done.set()

    def close(self) -> None:
        """Stop listening and take the sign of life away."""
        self._ended.set()
        with self._answered:  # who waits for an answer that exists gets it
            self._answered.wait_for(lambda: self._answering == 0, timeout=FAREWELL_S)
        self._server.shutdown()
        self._server.server_close()
        self._heart.join()
        self.trainer.store.delete(agent_key(self.site))

    # Requests

    def train(self, content: Any, gone: Callable[[], bool]) -> tuple[int, dict[str, Any]]:
        """HTTP status and answer of an order, once it is done.

        An order nobody waits for any more goes on, since its sender may come back; another order ends it after its
        step and takes its place.

        Args:
            content: the order.
            gone: whether the sender has hung up.
        """
        order = Order.read(content, "the order")
        if order.site != self.site:
            raise _Refused(400, f"the order is for site {order.site!r}, this is {self.site!r}'s trainer; send it there")
        job = self._enter(order)
        try:
            while not job.done.wait(POLL_S):
                if gone():
                    raise _Refused(499, f"the sender of {_text(order)} has hung up")
        finally:
            with self._guard:
                job.waiting -= 1
        return job.status, job.answer

    def _enter(self, order: Order) -> _Job:
        """The job of this order, known or new; waits for an abandoned one to make room."""
        while True:
            with self._guard:
                job = self._jobs.get(order.name)
                if job is not None and job.order != order:
                    raise _Refused(
                        409, f"{_text(order)} was ordered before with other content; give the new order another attempt"
                    )
                current = self._current
                if job is None and self._ended.is_set():
                    raise _Refused(503, self._ending)
                if job is None and current is None:
                    job = self._current = self._jobs[order.name] = _Job(order)
                    while len(self._jobs) > REMEMBERED:
                        del self._jobs[next(iter(self._jobs))]
                    self._queue.put(job)
                if job is not None:
                    job.waiting += 1
                    return job
                if current is not None and current.waiting > 0:
                    raise _Refused(
                        409,
                        f"site {self.site} is busy with {_text(current.order)}; POST /stop ends that, then send again",
                    )
            if current is not None:
                log.info("%s gives way to %s: nobody waits for it", _text(current.order), _text(order))
                current.stop.set()
                current.done.wait()

    def status(self) -> dict[str, Any]:
        with self._guard:
            job, progress = self._current, dict(self._progress)
        return {
            "site": self.site,
            "pid": os.getpid(),
            "busy": job is not None,
            "key": job.order.key if job else None,
            "round": job.order.round if job else None,
            "step": progress.get("step"),
            "steps": progress.get("steps"),
            "loss": progress.get("loss"),
            "tokens_per_s": progress.get("tokens_per_s"),
        }

    def stop(self) -> dict[str, Any]:
        """Ask the running round to end and wait until it has."""
        with self._guard:
            job = self._current
        if job is None:
            return {"stopped": False}
        job.stop.set()
        job.done.wait()
        return {"stopped": True}

    def end(self) -> None:
        """Let `work` return."""
        self._ended.set()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Held while a request is worked on and answered."""
        with self._answered:
            self._answering += 1
        try:
            yield
        finally:
            with self._answered:
                self._answering -= 1
                self._answered.notify_all()

    # Work

    def _run(self, job: _Job) -> None:
        watch = _MembershipWatch(self.trainer.store, self.site, job.order.watch)
        watch.start()
        try:
            result = self.trainer.train(
                job.order, self._note, lambda: job.stop.is_set() or self._ended.is_set() or watch.left.is_set()
            )
            job.status, job.answer = 200, result.model_dump(mode="json")
        except CurtailError as error:
            log.error("%s: %s", _text(job.order), error)
            job.status, job.answer = 400, {"error": str(error)}
        except Exception as error:  # a bug: the sender gets its name, the log its traceback
            log.exception("%s failed", _text(job.order))
            job.status, job.answer = 500, {"error": f"{type(error).__name__}: {error}"}
        finally:
            watch.close()
            with self._guard:
                if job.status != 200:  # a failed order may be sent again once its cause is mended
                    self._jobs.pop(job.order.name, None)
                self._current, self._progress = None, {}
            job.done.set()

    def _note(self, progress: dict[str, Any]) -> None:
        with self._guard:
            self._progress = progress

    # Liveness

    def _beat(self) -> None:
        while True:
            life = Heartbeat(site=self.site, pid=os.getpid(), at=utc_now(), busy=self._current is not None)
            try:
                self.trainer.store.write_json(agent_key(self.site), life.model_dump(mode="json"))
            except OSError as error:  # a full disk: late is better than dead
                log.error("no heartbeat: %s", error)
            if self._ended.wait(HEARTBEAT_S):
                return


class _MembershipWatch:
    """Sets `left` when a newer generation of the desired membership does not have the site train."""

    def __init__(self, store: Store, site: str, watch: Watch | None) -> None:
        self.left = threading.Event()
        self._closed = threading.Event()
        self._store, self._site, self._watch = store, site, watch
        self._thread = threading.Thread(target=self._poll, name="membership", daemon=True)

    def start(self) -> None:
        if self._watch is not None:
            self._thread.start()

    def close(self) -> None:
        self._closed.set()
        if self._watch is not None:
            self._thread.join()

    def _poll(self) -> None:
        assert self._watch is not None
        while not self._closed.is_set():
            try:
                membership = self._store.read_json(self._watch.key)
                newer = membership["generation"] > self._watch.generation
                if newer and membership["states"].get(self._site) != "train":
                    self.left.set()
                    return
            except StoreError as error:
                log.debug("no membership yet: %s", error)
            except (KeyError, TypeError, AttributeError) as error:
                log.warning("%s is not a membership (%r); training goes on", self._watch.key, error)
            self._closed.wait(WATCH_S)


def _text(order: Order) -> str:
    return f"{order.key} attempt {order.attempt} round {order.round}"


def _handler(agent: TrainerAgent) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60  # of a silent peer; a round may take as long as it takes

        def do_GET(self) -> None:
            self._answer({"/status": lambda _: (200, agent.status())})

        def do_POST(self) -> None:
            self._answer(
                {
                    "/train": lambda order: agent.train(order, self._gone),
                    "/stop": lambda _: (200, agent.stop()),
                    "/shutdown": lambda _: (200, agent.stop()),
                }
            )

        def _answer(self, routes: dict[str, Any]) -> None:
            with agent.answering():
                status = self._reply(routes)
            if status == 200 and self.path == "/shutdown":
                agent.end()

        def _reply(self, routes: dict[str, Any]) -> int:
            try:
                body = self._body()
                given = self.headers.get("Authorization", "")
                if not hmac.compare_digest(given.encode(), f"Bearer {agent.token}".encode()):
                    raise _Refused(401, "send the token from the endpoint file as 'Authorization: Bearer TOKEN'")
                if self.path not in routes:
                    raise _Refused(
                        404, f"no {self.command} {self.path}; there is GET /status, POST /train, /stop, /shutdown"
                    )
                status, answer = routes[self.path](json.loads(body) if body else None)
            except _Refused as error:
                status, answer = error.status, {"error": str(error)}
            except CurtailError as error:
                status, answer = 400, {"error": str(error)}
            except ValueError as error:
                status, answer = 400, {"error": f"the body is not JSON ({error}); send an order"}
            payload = json.dumps(answer).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
            except OSError:
                log.info("the sender of %s has gone", self.path)
                self.close_connection = True
            return status

        def _gone(self) -> bool:
            readable, _, _ = select.select([self.connection], [], [], 0)
            try:
                return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)
            except OSError:
                return True

        def _body(self) -> bytes:
            length = int(self.headers.get("Content-Length") or 0)
            if not 0 <= length <= LONGEST_BODY:
                self.close_connection = True
                raise _Refused(413, f"a body of {length} bytes is too long; orders have at most {LONGEST_BODY}")
            return self.rfile.read(length)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    return Handler
