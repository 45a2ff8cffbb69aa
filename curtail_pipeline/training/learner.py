"""A model on its device, its optimisers, and one step of them.

The host waits for the device once in a step: it reads loss and gradient norm together, before the optimisers step.
"""

import math
from contextlib import nullcontext
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training.attention import use_causal_attention
from curtail_pipeline.training.loss import head_loss, head_of
from curtail_pipeline.training.optimisers import Optimisers

DIVERGED_NATS = 1.0
"""A step whose loss is so far above ln(vocabulary), which guessing gives and every model starts at, ends the round."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Diverged(TrainingError):
    """A step that was not taken, because of its loss or its gradients."""


class Learner:
    """Trains a NanoChat model on the device that it is on.

    With `dtype: bfloat16` matrices are multiplied in that type, and so is all that flows between layers: embeddings
    are cast where they are looked up, as nanochat keeps its own. Weights, gradients and states stay float32.
    """

    def __init__(self, model: nn.Module, settings: TrainingSettings) -> None:
        use_causal_attention(model)
        self.model = model.train()
        self.optimisers = Optimisers(self.model, settings)
        self._settings = settings
        self._device = self.model.get_parameter("lm_head.weight").device
        self._embedding = self.model.get_submodule("model.embed_tokens")
        decoder = self.model.get_submodule("model")
        self._decoder = cast(nn.Module, torch.compile(decoder, fullgraph=True)) if settings.compile else decoder
        self.vocabulary = head_of(self.model)[0].shape[0]

    def step(self, batch: npt.NDArray[np.int64], multiplier: float) -> float:
        """One optimiser step.

        Args:
            batch: (sequences, T + 1) token ids below `vocabulary`.
            multiplier: of every learning rate.

        Returns:
            The batch's mean loss before the step, nats per token.

        Raises:
            Diverged: the loss is not finite or far above guessing, or a gradient is not finite. Nothing was changed.
        """
        tokens = torch.from_numpy(np.asarray(batch, dtype=np.int64))
        if self._device.type == "cuda":  # from pageable memory the copy would wait for the device
            tokens = tokens.pin_memory()
        loss, norm = self.gradients(tokens.to(self._device, non_blocking=True)).tolist()
        limit = math.log(self.vocabulary) + DIVERGED_NATS
        if not (loss <= limit and math.isfinite(norm)):
            self.model.zero_grad()
            raise Diverged(f"diverged: loss {loss:.4g} (limit {limit:.4g}) and gradient norm {norm:.4g}")
        self.apply(multiplier)
        return float(loss)

    def gradients(self, tokens: torch.Tensor) -> torch.Tensor:
        """Clipped gradients of (sequences, T + 1) ids: their mean loss and the norm before clipping, on the device."""
        count = tokens.shape[0] * (tokens.shape[1] - 1)
        total = torch.zeros((), device=self._device)
        for part in tokens.split(self._settings.device_batch_sequences):
            loss = self._loss(part) / count
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.grad_clip)
        return torch.stack([total, norm])

    def apply(self, multiplier: float) -> None:
        """Step by the gradients, and forget them."""
        self.optimisers.set_multiplier(multiplier)
        self.optimisers.step()
        self.model.zero_grad()

    def _loss(self, tokens: torch.Tensor) -> torch.Tensor:
        dtype = DTYPES[self._settings.dtype]
        autocast = torch.autocast(self._device.type, dtype) if dtype != torch.float32 else nullcontext()
        with autocast:
            embedded = self._embedding(tokens[:, :-1]).to(dtype)
            hidden = self._decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state
            weight, cap = head_of(self.model)
            return head_loss(hidden.flatten(0, 1).to(dtype), weight, tokens[:, 1:].flatten(), cap)
