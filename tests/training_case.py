"""A small site to train: a store with shards, tokenizer and initial checkpoint, and orders for it."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from corpus_texts import build_shards

from curtail_pipeline.federation.orders import Order, Result, SharedState, StoredWeights
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.tokens.ranges import Range, after_prefix

if TYPE_CHECKING:
    from curtail_pipeline.training.trainer import SiteTrainer

SITE = "NEM_SA"
SEQUENCE = 16
SEQUENCES_PER_STEP = 4
CONFIG = "checkpoints/ckpt-000000/config.json"
WEIGHTS = "checkpoints/ckpt-000000/model.safetensors"

TEXT = (
    "The grid had more wind than it could use, so the turbines stood still. A site {0} kilometres away woke up, read "
    "{1} pages of prose, and went to sleep when the wind fell. Number {2} of its kind. "
)


def make_experiment(**training: Any) -> Experiment:
    settings = {
        "preset": "tiny",
        "model_overrides": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
        },
        "sequence_length": SEQUENCE,
        "device_batch_sequences": 2,
        "total_batch_tokens": SEQUENCE * SEQUENCES_PER_STEP,
        **training,
    }
    content = {
        "name": "small",
        "seed": 3,
        "traces": {"provider": "synthetic", "start": "2026-03-21T00:00:00Z", "days": 1},
        "sites": [{"name": SITE, "region": SITE, "training_kw": 2, "idle_kw": 0.5, "steps_per_s": 1}],
        "job": {"steps": 100},
        "corpus": {"source": "text", "vocab_size": 512, "heldout_fraction": 0.2},
        "training": settings,
    }
    return parse_experiment(content, "small")


def fill_store(root: Path, experiment: Experiment) -> FolderStore:
    """Text, tokenizer, shards of the experiment's sites, experiment and `ckpt-000000` without a manifest."""
    from curtail_pipeline.training.presets import init_checkpoint

    texts = root / "text"
    texts.mkdir(parents=True)
    for i in range(60):
        (texts / f"{i:02d}.txt").write_text(TEXT.format(i * 7, i % 5, i) * 3, encoding="utf-8")
    store = FolderStore(root / "store")
    corpus = experiment.corpus.model_copy(update={"source": str(texts)})
    build_shards(corpus, store, {site.name: 1 / len(experiment.sites) for site in experiment.sites})
    store.write_json("experiment.json", experiment.model_dump(mode="json"))
    init_checkpoint(
        experiment.training, store.path("corpus/tokenizer"), store.path("checkpoints/ckpt-000000"), experiment.seed
    )
    return store


def make_order(store: FolderStore, **changes: Any) -> Order:
    """Round 0 of `ckpt-000001`: 3 steps from the initial checkpoint."""
    content = {
        "key": "ckpt-000001",
        "attempt": 0,
        "round": 0,
        "site": SITE,
        "experiment_uri": "experiment.json",
        "store": str(store.root),
        "parent": {"key": WEIGHTS, "sha256": file_sha256(store.path(WEIGHTS))},
        "config": CONFIG,
        "inner_state": "fresh",
        "first_step": 0,
        "members": 1,
        "total_steps": 100,
        "max_steps": 3,
        "deadline_s": None,
        "lease": [(1, 0, 200)],
        "seed": 5,
        "watch": None,
        "out": "scratch/ckpt-000001/0/round-000/NEM_SA.safetensors",
    }
    return Order.model_validate(content | changes)


def changed(order: Order, **changes: Any) -> Order:
    """The order with other values, validated."""
    return Order.model_validate({**dict(order), **changes})


def next_order(order: Order, result: Result, **changes: Any) -> Order:
    """The round after `order` in a segment of one member, given its result."""
    number = order.round + 1
    follows = {
        "round": number,
        "parent": StoredWeights(key=result.weights.key, sha256=result.weights.sha256),
        "inner_state": result.inner_state.end,
        "first_step": order.first_step + result.steps,
        "lease": after_prefix(order.lease, result.consumed),
        "out": f"scratch/ckpt-000001/0/round-{number:03d}/NEM_SA.safetensors",
    }
    return changed(order, **follows | changes)


def run_rounds(store: FolderStore, trainer: "SiteTrainer", rounds: int, **changes: Any) -> list[tuple[Order, Result]]:
    """Rounds one after the other in one trainer."""
    done = []
    order = make_order(store, **changes)
    for _ in range(rounds):
        result = trainer.train(order)
        done.append((order, result))
        order = next_order(order, result)
    return done


def comparable(result: Result) -> dict[str, Any]:
    """What of a result does not depend on how fast the machine was."""
    return result.model_dump(exclude={"seconds", "tokens_per_s"})


def everything_stored(store: FolderStore) -> dict[str, str]:
    return {str(p.relative_to(store.root)): file_sha256(p) for p in store.root.rglob("*") if p.is_file()}


class CountingReader:
    """Sequences that name themselves: row `i` of the lease is all token `i % 400`."""

    def __init__(self) -> None:
        self.read: list[list[int]] = []

    def batches(self, ranges: list[Range], sequences_per_batch: int, seed: int) -> Iterator[np.ndarray]:
        rows = [i for _, start, stop in ranges for i in range(start, stop)]
        for at in range(0, len(rows), sequences_per_batch):
            self.read.append(rows[at : at + sequences_per_batch])
            yield np.tile(np.array(self.read[-1])[:, None] % 400, SEQUENCE + 1).astype(np.uint16)


def overlapping(store: FolderStore, **changes: Any) -> Order:
    """An order that is answered before its update is stored (`rounds.overlap`)."""
    return make_order(
        store, codec="int4", shared=SharedState(name="fresh"), inner_codec="int4",
        inner_out="scratch/r0/inner/NEM_SA.safetensors", delivered="scratch/r0/NEM_SA.json", **changes
    )  # fmt: skip


def behind(order: Order, result: Result, **changes: Any) -> Order:
    """The round after one that is not merged: from the same parent and what the site has trained."""
    follows = {
        "parent": order.parent,
        "own": StoredWeights(key=result.weights.key, sha256=result.weights.sha256),
        "shared": SharedState(name=result.inner_state.end, key=order.inner_out),
        "residual": result.residual.end if result.residual else "fresh",
        "inner_out": "scratch/r1/inner/NEM_SA.safetensors",
        "delivered": "scratch/r1/NEM_SA.json",
    }
    return next_order(order, result, **follows | changes)
