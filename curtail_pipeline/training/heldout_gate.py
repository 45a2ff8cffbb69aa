"""Held-out loss of weights that are not committed: what an update is judged by before it is merged."""

from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import load_file

from curtail_pipeline.corpus.batches import HeldoutReader
from curtail_pipeline.errors import FederationError, TrainingError
from curtail_pipeline.federation.orders import Plan, StoredDelta, StoredWeights
from curtail_pipeline.federation.update_file import write_weights
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.storage.held_folder import held_folder
from curtail_pipeline.storage.store import CorruptObject, NotStored, Store
from curtail_pipeline.training.loss import token_losses
from curtail_pipeline.training.presets import build_model, read_config
from curtail_pipeline.training.weights import read_tensors, require_same_shapes


class HeldoutGate:
    """Calls give nats per token, in float32; one model is kept in memory.

    Args:
        device: that the model is on.

    Raises:
        TrainingError: the plan's model config cannot be used.
        CorpusError: there is no held-out shard.
    """

    def __init__(self, store: Store, plan: Plan, device: str = "cpu") -> None:
        experiment = parse_experiment(store.read_json(plan.experiment_uri), plan.experiment_uri)
        self._store, self._settings = store, experiment.training
        self._heldout = HeldoutReader(store, self._settings.sequence_length)
        model: torch.nn.Module = build_model(read_config(store.read_bytes(plan.parent.config), plan.parent.config))
        self._device, self._model = device, model.to(device).eval()
        self._known: dict[str, float] = {}
        """By sha256 of weights, and of deltas with what they move: what a site alone has trained is the next round's
        start, and a round that gave nothing leaves its own."""

    def __call__(self, weights: StoredWeights | StoredDelta) -> float | None:
        """None for weights that cannot be read or do not fit the model; the merge refuses them by name."""
        name = weights.sha256
        if isinstance(weights, StoredDelta):  # that of a round without a step is the same in every round
            name = f"{weights.codec} {weights.sha256} {weights.base.sha256}"
        if name not in self._known:
            try:
                sha256 = self._take(weights)
            except (TrainingError, FederationError, CorruptObject, NotStored):
                return None
            self._known[name] = self._known[sha256] = self._loss()
        return self._known[name]

    def _take(self, weights: StoredWeights | StoredDelta) -> str:
        """Give the model these weights, or its base's moved so far; their sha256."""
        if not isinstance(weights, StoredDelta):
            self._load(read_tensors(self._store, weights.key, weights.sha256), weights.key)
            return weights.sha256
        with (
            self._store.local(weights.base.key) as base,
            self._store.local(weights.key) as delta,
            held_folder(self._store.here("scratch/gate"), "") as folder,
        ):
            made = folder / "model.safetensors"
            written = write_weights(base, delta, weights.codec, made)
            self._load(load_file(made), weights.key)
            return written.sha256

    def _load(self, tensors: Mapping[str, torch.Tensor], key: str) -> None:
        """
        Raises:
            TrainingError: they are another model's. Whatever else is raised, as for want of memory, says nothing of
                them, and unjudged they may not be merged.
        """
        require_same_shapes(self._model.state_dict(), tensors, key)
        self._model.load_state_dict(tensors)

    def _loss(self) -> float:
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in self._heldout.batches(
                self._settings.device_batch_sequences, self._settings.evaluation_sequences
            ):
                losses = token_losses(self._model, torch.from_numpy(np.asarray(batch, dtype=np.int64)).to(self._device))
                total += float(losses.double().sum())
                count += losses.numel()
        return total / count
