"""What a segment tells its Flower run, and what is kept of the run beside the plan."""

import json
from collections.abc import Mapping

from pydantic import Field

from curtail_pipeline.storage.records import Message, Record, read_record

FlowerValue = str | int | float | bool


class RunConfig(Record):
    """The run config of the ServerApp; its keys stand in the app's `pyproject.toml`."""

    store: str
    """Root of the store."""
    plan: str
    """Store key of the segment's plan."""
    nodes: dict[str, int]
    """Site -> Flower node id, 0 where it is not known."""
    liveness_s: float = Field(gt=0)
    """A site without heartbeat for so long is lost."""

    def to_flower(self) -> dict[str, FlowerValue]:
        """Flower knows plain values only."""
        nodes = json.dumps(self.nodes)
        return {"store": self.store, "plan": self.plan, "nodes": nodes, "liveness-s": self.liveness_s}

    @classmethod
    def from_flower(cls, config: Mapping[str, FlowerValue]) -> "RunConfig":
        """What `to_flower` gave.

        Raises:
            MessageError: it is not that.
        """
        content = {key.replace("-", "_"): value for key, value in config.items()}
        return read_record(cls, {**content, "nodes": json.loads(str(content.get("nodes", "{}")))}, "the run config")


class FlowerRun(Message):
    """`flower.json`: which run works on the plan beside it."""

    run_id: int
    superlink: str
