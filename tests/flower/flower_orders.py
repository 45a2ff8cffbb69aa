"""An order, what a site answers to it, and the context in which Flower hands it over."""

from pathlib import Path

from curtail_pipeline.federation.orders import Order, Result, StoredWeights, WrittenWeights
from curtail_pipeline.flower import control_api as control
from curtail_pipeline.storage.manifest import InnerStates

with control.quiet():
    from flwr.app import Context, RecordDict


def context(name: str, endpoint: Path | str = "") -> Context:
    return Context(1, 1, {"name": name, "endpoint": str(endpoint)}, RecordDict(), {}, 1)


def order_for(site: str, key: str = "ckpt-000001", round_: int = 4) -> Order:
    parent = StoredWeights(key="checkpoints/ckpt-000000/model.safetensors", sha256="0" * 64)
    return Order(
        key=key, attempt=1, round=round_, site=site, experiment_uri="experiment.json", store="/nowhere", parent=parent,
        config="c.json", inner_state="fresh", first_step=0, members=1, total_steps=10, max_steps=1, deadline_s=None,
        lease=((1, 0, 4),), seed=0, out=f"scratch/{key}/1/{site}.safetensors",
    )  # fmt: skip


def result_of(order: Order) -> Result:
    """What a site answers that took no step."""
    return Result(
        site=order.site, round=order.round, parent_sha256=order.parent.sha256, steps=0, tokens=0, consumed=(),
        loss_first=None, loss_last=None, loss_mean=None, seconds=0.0, tokens_per_s=0.0, stop="membership",
        weights=WrittenWeights(key=order.out, sha256="1" * 64, bytes=8),
        inner_state=InnerStates(begin=order.inner_state, end=order.inner_state),
    )  # fmt: skip
