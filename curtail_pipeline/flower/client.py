"""The site's side of a Flower message: hand the order to the resident trainer, return its answer.

Imports neither torch nor transformers: Flower starts a process for every message. The node's configuration says who the
site is (`name`) and where its trainer writes its endpoint (`endpoint`, a JSON file with port, process id and token).
"""

import json
import os
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from curtail_pipeline.errors import FederationError
from curtail_pipeline.flower.processes import SUPERVISOR_VARIABLE, exit_with
from curtail_pipeline.flower.trainer_client import Trainer


def answer(message: Message, context: Context) -> Message:
    """Reply to a QUERY with the site's name, to a TRAIN with the trainer's result or the reason there is none."""
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor:
        exit_with(int(supervisor))
    name = str(context.node_config.get("name", ""))
    reply: dict[str, Any] = {"name": name}
    record = message.content.config_records.get("order")
    if record is not None:
        order = json.loads(str(record["order"]))
        try:
            if order["site"] != name:
                raise FederationError(f"an order for {order['site']!r} reached {name!r}; the node map is out of date")
            reply["result"] = Trainer(Path(str(context.node_config["endpoint"]))).train(order)
        except FederationError as error:
            reply["error"] = str(error)
    return Message(RecordDict({"answer": ConfigRecord({"answer": json.dumps(reply)})}), reply_to=message)
