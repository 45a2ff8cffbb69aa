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
from transformers import NanoChatConfig

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training.attention import use_causal_attention
from curtail_pipeline.training.loss import head_loss, head_of
from curtail_pipeline.training.optimisers import Optimisers
from curtail_pipeline.training.schedule import MOMENTUM
from curtail_pipeline.training.throughput import flops_per_token, mfu, peak_flops

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
        self._decoder = self.model.get_submodule("model")
        self._hidden = torch.compile(self._states, fullgraph=True) if settings.compile else self._states
        config = cast(NanoChatConfig, self.model.config)
        self._flops, self._peak = flops_per_token(config, settings.sequence_length), peak_flops(self._device)
        self.vocabulary = head_of(self.model)[0].shape[0]

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation at this speed; None where the device's peak is not known."""
        return mfu(tokens_per_s, self._flops, self._peak)

    def warm_up(self) -> None:
        """Do a step on nothing, which compiles and loads what the first one needs; parameters are zero afterwards."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.zero_()
        length = self._settings.sequence_length
        sequences = min(self._settings.device_batch_sequences, self._settings.total_batch_tokens // length)
        self.gradients(torch.zeros(sequences, length + 1, dtype=torch.int64, device=self._device)).tolist()
        self.apply(0.0)
        self.optimisers.reset()

    def step(self, batch: npt.NDArray[np.int64], multiplier: float, momentum: float = MOMENTUM) -> float:
        """One optimiser step.

        Args:
            batch: (sequences, T + 1) token ids below `vocabulary`.
            multiplier: of every learning rate.
            momentum: Muon's.

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
        self.apply(multiplier, momentum)
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

    def apply(self, multiplier: float, momentum: float = MOMENTUM) -> None:
        """Step by the gradients, and forget them."""
        self.optimisers.set_momentum(momentum)
        self.optimisers.set_multiplier(multiplier)
        self.optimisers.step()
        self.model.zero_grad()

    def _loss(self, tokens: torch.Tensor) -> torch.Tensor:
        dtype = DTYPES[self._settings.dtype]
        autocast = torch.autocast(self._device.type, dtype) if dtype != torch.float32 else nullcontext()
        with autocast:
            hidden = self._hidden(tokens[:, :-1])
            weight, cap = head_of(self.model)
            return head_loss(hidden.flatten(0, 1).to(dtype), weight, tokens[:, 1:].flatten(), cap)

    def _states(self, ids: torch.Tensor) -> torch.Tensor:
        """What the head multiplies, (B, T, width), for (B, T) token ids."""
        embedded = self._embedding(ids).to(DTYPES[self._settings.dtype])
        return cast(torch.Tensor, self._decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state)
