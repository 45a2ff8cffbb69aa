"""Held-out loss of weights that are not committed: what an update is judged by before it is merged."""

import numpy as np
import torch

from curtail_pipeline.corpus.batches import HeldoutReader
from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.orders import Plan, StoredWeights
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.storage.store import CorruptObject, Store
from curtail_pipeline.training.loss import token_losses
from curtail_pipeline.training.presets import build_model, read_config
from curtail_pipeline.training.weights import read_tensors


class HeldoutGate:
    """Calls give nats per token, on a CPU in float32; one model is kept in memory.

    Raises:
        TrainingError: the plan's model config cannot be used.
        CorpusError: there is no held-out shard.
    """

    def __init__(self, store: Store, plan: Plan) -> None:
        experiment = parse_experiment(store.read_json(plan.experiment_uri), plan.experiment_uri)
        self._store, self._settings = store, experiment.training
        self._heldout = HeldoutReader(store, self._settings.sequence_length)
        self._model = build_model(read_config(store.read_bytes(plan.parent.config), plan.parent.config)).eval()
        self._known: dict[str, float] = {}
        """By sha256 of the weights: what a site alone has trained is the next round's start, and a round that gave
        nothing leaves its own."""

    def __call__(self, weights: StoredWeights) -> float | None:
        """None for weights that cannot be read or do not fit the model; the merge refuses them by name."""
        if weights.sha256 not in self._known:
            try:
                self._model.load_state_dict(read_tensors(self._store, weights.key, weights.sha256))
            except (TrainingError, CorruptObject, RuntimeError):
                return None
            self._known[weights.sha256] = self._loss()
        return self._known[weights.sha256]

    def _loss(self) -> float:
        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in self._heldout.batches(
                self._settings.device_batch_sequences, self._settings.evaluation_sequences
            ):
                losses = token_losses(self._model, torch.from_numpy(np.asarray(batch, dtype=np.int64)))
                total += float(losses.double().sum())
                count += losses.numel()
        return total / count
