"""The site's side of a Flower message: hand the order to the resident trainer, return its answer.

Imports neither torch nor transformers: Flower starts a process for every message. The node's configuration says who the
site is (`name`) and where its trainer writes its endpoint (`endpoint`, a JSON file with port, process id and token).
"""

import os
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict

from curtail_pipeline.errors import FederationError, MessageError
from curtail_pipeline.federation.orders import Order
from curtail_pipeline.federation.trainer_api import Answer, Waiting
from curtail_pipeline.flower.processes import SUPERVISOR_VARIABLE, exit_with
from curtail_pipeline.flower.trainer_client import Trainer


def _ask(name: str, trainer: Trainer, order: Order) -> Answer:
    if not order.replay:
        return Answer(name=name, result=trainer.train(order))
    # A node takes one message at a time: a replay that waits for spare time must not keep live orders from it.
    found = trainer.replay(order)
    return Answer(name=name, waiting=True) if isinstance(found, Waiting) else Answer(name=name, result=found)


def answer(message: Message, context: Context) -> Message:
    """Reply to a QUERY with the site's name, to a TRAIN with the trainer's result or the reason there is none."""
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor:
        exit_with(int(supervisor))
    name = str(context.node_config.get("name", ""))
    record = message.content.config_records.get("order")
    answer = Answer(name=name)
    if record is not None:
        try:
            order = Order.read(str(record["order"]), "the order")
            if order.site != name:
                raise FederationError(f"an order for {order.site!r} reached {name!r}; the node map is out of date")
            answer = _ask(name, Trainer(Path(str(context.node_config["endpoint"]))), order)
        except (FederationError, MessageError) as error:
            answer = Answer(name=name, error=str(error))
    content = ConfigRecord({"answer": answer.model_dump_json()})
    return Message(RecordDict({"answer": content}), reply_to=message)
