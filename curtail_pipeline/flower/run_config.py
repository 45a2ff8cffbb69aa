"""What a segment tells its Flower run, and what is kept of the run beside the plan."""

import json
from collections.abc import Mapping

from curtail_pipeline.settings.federation_settings import LivenessLimits
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
    limits: LivenessLimits

    def to_flower(self) -> dict[str, FlowerValue]:
        """Flower knows plain values only."""
        nodes = json.dumps(self.nodes)
        return {"store": self.store, "plan": self.plan, "nodes": nodes, "limits": self.limits.model_dump_json()}

    @classmethod
    def from_flower(cls, config: Mapping[str, FlowerValue]) -> "RunConfig":
        """What `to_flower` gave.

        Raises:
            MessageError: it is not that.
        """
        nested = {name: json.loads(str(config.get(name, "{}"))) for name in ("nodes", "limits")}
        return read_record(cls, {**config, **nested}, "the run config")


class FlowerRun(Message):
    """`flower.json`: which run works on the plan beside it."""

    run_id: int
    superlink: str
