"""The resident trainer's HTTP interface on a loopback port (`federation.trainer_api` has its table)."""

import asyncio
import hmac
import logging
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable

import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from curtail_pipeline.errors import CurtailError
from curtail_pipeline.federation.orders import Order
from curtail_pipeline.federation.trainer_api import Refusal, StopOrder, Stopped, Waiting
from curtail_pipeline.training.order_queue import Job, OrderQueue, Outcome, Refused, name_of

log = logging.getLogger("curtail.trainer")

REPLAY_ANSWER_S = 1.0
"""How long the sender of a replay's order waits at most: agents take one message at a time, and a live order must not
wait behind it."""
POLL_S = 0.5
"""How often a handler that waits for a round looks whether its sender is still there."""
FAREWELL_S = 5
"""How long an ending trainer waits for its last answers to be sent."""
LONGEST_BODY = 64 << 20

Reply = tuple[int, BaseModel]


class OrderServer:
    """Serves one `OrderQueue`. Every request carries the token."""

    def __init__(self, orders: OrderQueue) -> None:
        self.orders = orders
        self.token = secrets.token_urlsafe(32)
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen(128)  # whoever finds the endpoint may ask before the server's thread gets to it
        app = Starlette(routes=[Route("/{path:path}", self._answer, methods=["GET", "POST"])])
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=FAREWELL_S
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="http", daemon=True
        )
        self._routes: dict[tuple[str, str], Callable[[Request], Awaitable[Reply]]] = {
            ("GET", "/status"): self._status,
            ("POST", "/train"): self._train,
            ("POST", "/stop"): self._stop,
            ("POST", "/shutdown"): self._shutdown,
        }

    @property
    def port(self) -> int:
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop listening; who waits for an answer that exists gets it."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        try:
            given = request.headers.get("Authorization", "")
            if not hmac.compare_digest(given.encode(), f"Bearer {self.token}".encode()):
                raise Refused(401, "send the token from the endpoint file as 'Authorization: Bearer TOKEN'")
            route = self._routes.get((request.method, path))
            if route is None:
                known = ", ".join(f"{method} {place}" for method, place in self._routes)
                raise Refused(404, f"no {request.method} {path}; there is {known}")
            status, answer = await route(request)
        except Refused as error:
            status, answer = error.status, Refusal(error=str(error))
        except CurtailError as error:
            status, answer = 400, Refusal(error=str(error))
        ends = BackgroundTask(self.orders.ended.set) if status == 200 and path == "/shutdown" else None
        return Response(answer.model_dump_json(), status, media_type="application/json", background=ends)

    async def _status(self, _: Request) -> Reply:
        return 200, self.orders.status()

    async def _stop(self, request: Request) -> Reply:
        return await self._stopped(self.orders.stop(StopOrder.read(await _body(request), "what to stop")))

    async def _shutdown(self, _: Request) -> Reply:
        return await self._stopped(self.orders.stop_all())

    async def _stopped(self, job: Job | None) -> Reply:
        if job is not None:
            await asyncio.wrap_future(job.outcome)
        return 200, Stopped(stopped=job is not None)

    async def _train(self, request: Request) -> Reply:
        """The result of an order, once it is done."""
        order = Order.read(await _body(request), "the order")
        while (job := self.orders.enter(order)).order.name != order.name:
            await asyncio.wrap_future(job.outcome)
        if order.replay:
            await asyncio.wait({asyncio.wrap_future(job.outcome)}, timeout=REPLAY_ANSWER_S)
            if not job.outcome.done():
                return 202, Waiting(running=self.orders.runs(job))
        with self.orders.waited_for(job):
            outcome = await self._outcome(job, request)
        return outcome.status, outcome.answer

    async def _outcome(self, job: Job, request: Request) -> Outcome:
        waiting = asyncio.wrap_future(job.outcome)
        while not waiting.done():
            await asyncio.wait({waiting}, timeout=POLL_S)
            if not waiting.done() and await request.is_disconnected():
                log.info("the sender of %s has hung up", name_of(job.order))
                raise Refused(499, f"the sender of {name_of(job.order)} has hung up")
        return waiting.result()


async def _body(request: Request) -> bytes:
    """The request's body; a longer one than any order is refused before it is read."""
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > LONGEST_BODY:
            raise Refused(413, f"a body above {LONGEST_BODY} bytes is too long for an order")
    return bytes(body)
