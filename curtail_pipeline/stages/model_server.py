"""The worker's side of `model_worker`: an HTTP server, one request at a time."""

import logging
import threading
from collections.abc import Callable

import uvicorn
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from curtail_pipeline.errors import CurtailError, FederationError
from curtail_pipeline.federation.trainer_api import Refusal
from curtail_pipeline.stages.evaluate import evaluate_here
from curtail_pipeline.stages.initialise import initialise_here
from curtail_pipeline.stages.model_worker import Made, Wanted
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.stores import open_store
from curtail_pipeline.training.heldout_loss import Evaluation

log = logging.getLogger("curtail.worker")


class Worker:
    """Does what it is asked for.

    Args:
        opened: the project; asked for anew each time, since an experiment's file may change.
    """

    def __init__(self, opened: Callable[[], Project]) -> None:
        self._opened = opened
        self._one = threading.Lock()

    def initialise(self, _: bytes) -> Made:
        return Made(key=initialise_here(self._opened()).key)

    def evaluate(self, body: bytes) -> Evaluation:
        wanted, project = Wanted.read(body, "what to evaluate"), self._opened()
        own = project.store.uri
        if wanted.store != own and (not wanted.store.startswith(f"{own}/") or ".." in wanted.store.split("/")):
            raise FederationError(f"{wanted.store} is not in this worker's store, {own}; start it on the same one")
        checkpoints = (
            project.checkpoints
            if wanted.store == own
            else Checkpoints(open_store(wanted.store), project.experiment.training.sequence_length)
        )
        return evaluate_here(project, checkpoints, wanted.key)

    def app(self) -> Starlette:
        def route(path: str, work: Callable[[bytes], BaseModel]) -> Route:
            async def answer(request: Request) -> Response:
                status, said = await run_in_threadpool(self._worked, work, await request.body())
                return Response(said.model_dump_json(), status, media_type="application/json")

            return Route(path, answer, methods=["POST"])

        return Starlette(routes=[route("/initialise", self.initialise), route("/evaluate", self.evaluate)])

    def _worked(self, work: Callable[[bytes], BaseModel], body: bytes) -> tuple[int, BaseModel]:
        with self._one:
            try:
                return 200, work(body)
            except CurtailError as error:
                log.error("%s", error)
                return 400, Refusal(error=str(error))


def serve(opened: Callable[[], Project], host: str, port: int) -> None:
    """Answer until told to stop (SIGTERM, SIGINT)."""
    uvicorn.run(Worker(opened).app(), host=host, port=port, log_level="warning", lifespan="off", ws="none")
