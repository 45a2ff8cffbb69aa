"""A model on its device, its optimisers, and one step of them.

The host waits for the device once in a step: it reads loss and gradient norm together when the optimisers' work is on
its way. Read before, that work would begin with an idle device, by its profile 25 ms of a d20's step on an H200.

Where several ranks train together (`ranks`), each has such a learner, and all do the same calls. Each takes its share
of a step's sequences, the first rank the first ones: which tokens a step takes does not depend on how many there are.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from transformers import NanoChatConfig

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training.attention import fix_positions, use_causal_attention
from curtail_pipeline.training.loss import TokenLoss, head_of
from curtail_pipeline.training.optimisers import Optimisers
from curtail_pipeline.training.presets import build_model, empty_model
from curtail_pipeline.training.rank_commands import GiveState, GiveWeights, Reset, Step, TakeState, TakeWeights, WarmUp
from curtail_pipeline.training.ranks import ALONE, GroupRanks, Ranks
from curtail_pipeline.training.schedule import MOMENTUM
from curtail_pipeline.training.sharding import Replicated, Sharded, Spread, local, share_of, whole
from curtail_pipeline.training.throughput import flops_per_token, mfu, peak_flops
from curtail_pipeline.training.weights import require_same_shapes

DIVERGED_NATS = 1.0
"""A step whose loss is so far above ln(vocabulary), which guessing gives and every model starts at, ends the round."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Diverged(TrainingError):
    """A step that is not to be counted, because of its loss or its gradients."""


class Learner:
    """Trains a NanoChat model on the device that it is on.

    With `dtype: bfloat16` matrices are multiplied in that type, and so is all that flows between layers: embeddings
    are cast where they are looked up, as nanochat keeps its own. Weights, gradients and states stay float32.

    Args:
        model: on its device; on the meta device where it is to be sharded.
        ranks: who trains it; the calls below are then theirs together, told to the others by rank 0.
        sharded: whether each rank has but a share of the model.
    """

    def __init__(
        self, model: nn.Module, settings: TrainingSettings, ranks: Ranks = ALONE, sharded: bool = False
    ) -> None:
        use_causal_attention(model)
        self.model, self.ranks, self._settings = model.train(), ranks, settings
        self.loss = TokenLoss(self.model, DTYPES[settings.dtype], settings.compile, by_layer=sharded)
        self._spread: Spread | None = None
        if isinstance(ranks, GroupRanks):
            self._spread = Sharded(self.loss, model, ranks) if sharded else Replicated(self.loss, ranks)
        self._device = local(self.model.get_parameter("lm_head.weight")).device
        fix_positions(model, settings.sequence_length, DTYPES[settings.dtype], self._device)
        self.optimisers = Optimisers(self.model, settings, ranks)
        config = cast(NanoChatConfig, self.model.config)
        self._flops, self._peak = flops_per_token(config, settings.sequence_length), peak_flops(self._device)
        self.vocabulary = head_of(self.model)[0].shape[0]

    def mfu(self, tokens_per_s: float) -> float | None:
        """Model FLOPs utilisation at this speed; None where the device's peak is not known."""
        return mfu(tokens_per_s, self._flops, self._peak, self.ranks.size)

    def warm_up(self) -> None:
        """Do steps on nothing, which compiles and loads what the first one needs; parameters are zero afterwards.

        Twice over several ranks: after its first step DDP lays gradients out anew for adding them up, and the order in
        which they are added must not depend on how many steps a process has done.
        """
        with self.ranks.together(WarmUp()):
            with torch.no_grad():
                for parameter in self.model.parameters():
                    local(parameter).zero_()
            length = self._settings.sequence_length
            sequences = self._settings.total_batch_tokens // length // self.ranks.size
            sequences = min(self._settings.device_batch_sequences, sequences)
            tokens = torch.zeros(sequences, length + 1, dtype=torch.int64, device=self._device)
            for _ in range(2 if self.ranks.size > 1 else 1):
                self.gradients(tokens).tolist()
                self.apply(0.0)
            self.optimisers.reset()

    def load_weights(self, weights: Mapping[str, torch.Tensor], source: str) -> None:
        """Take these over; only rank 0 has to have them.

        Raises:
            TrainingError: they are another model's; `source` names them.
        """
        own = self.model.state_dict()
        if self.ranks.rank == 0:
            require_same_shapes(own, weights, source)
        with self.ranks.together(TakeWeights()), torch.no_grad():
            for name, tensor in own.items():
                if self.ranks.size == 1:
                    tensor.copy_(weights[name])
                    continue
                given = torch.empty(tensor.shape, dtype=tensor.dtype, device=self._device)
                if self.ranks.rank == 0:
                    given.copy_(weights[name])
                self.ranks.broadcast(given, 0)
                local(tensor).copy_(share_of(given, tensor))

    def weights(self) -> dict[str, torch.Tensor]:
        """The whole model's by name; sharing its memory where that is one piece, and rank 0's alone where it is not."""
        own: dict[str, torch.Tensor] = self.model.state_dict()
        if not isinstance(self._spread, Sharded):
            return own
        with self.ranks.together(GiveWeights()):
            pieces = ((name, whole(tensor)) for name, tensor in own.items())
            return {name: tensor.cpu() for name, tensor in pieces if self.ranks.rank == 0}

    def load_state(self, state: Mapping[str, torch.Tensor], source: str) -> None:
        """Have the optimisers remember this, which `state` gave; only rank 0 has to have it.

        Raises:
            TrainingError: it is another model's; `source` names it.
        """
        if self.ranks.rank == 0:
            self.optimisers.check(state, source)
        with self.ranks.together(TakeState()):
            self.optimisers.load(state)

    def state(self) -> dict[str, torch.Tensor]:
        """What the optimisers remember; empty on other ranks than 0."""
        with self.ranks.together(GiveState()):
            return self.optimisers.state()

    def reset(self) -> None:
        """Have the optimisers forget everything."""
        with self.ranks.together(Reset()):
            self.optimisers.reset()

    def step(self, batch: npt.NDArray[np.int64] | None, multiplier: float, momentum: float = MOMENTUM) -> float:
        """One optimiser step.

        Args:
            batch: (sequences, T + 1) token ids below `vocabulary`; None on other ranks than 0.
            multiplier: of every learning rate.
            momentum: Muon's.

        Returns:
            The batch's mean loss before the step, nats per token.

        Raises:
            Diverged: the loss is not finite or far above guessing, or a gradient is not finite. Weights and what the
                optimisers remember are worthless then; load others.
        """
        with self.ranks.together(Step(multiplier=multiplier, momentum=momentum)):
            found = self.gradients(self._share(batch))
            self.apply(multiplier, momentum)
            loss, norm = found.tolist()
            limit = math.log(self.vocabulary) + DIVERGED_NATS
            if not (loss <= limit and math.isfinite(norm)):  # the same values on every rank
                raise Diverged(f"diverged: loss {loss:.4g} (limit {limit:.4g}) and gradient norm {norm:.4g}")
            return float(loss)

    def _share(self, batch: npt.NDArray[np.int64] | None) -> torch.Tensor:
        """This rank's sequences of the batch that rank 0 has, on the device."""
        if batch is not None:
            tokens = torch.from_numpy(np.asarray(batch, dtype=np.int64))
            if self._device.type == "cuda":  # from pageable memory the copy would wait for the device
                tokens = tokens.pin_memory()
            tokens = tokens.to(self._device, non_blocking=True)
        else:
            length = self._settings.sequence_length
            shape = (self._settings.total_batch_tokens // length, length + 1)
            tokens = torch.empty(shape, dtype=torch.int64, device=self._device)
        self.ranks.broadcast(tokens, 0)
        return tokens.tensor_split(self.ranks.size)[self.ranks.rank]

    def gradients(self, tokens: torch.Tensor) -> torch.Tensor:
        """Clipped gradients of this rank's (sequences, T + 1) ids and of the others': mean loss and the norm before
        clipping, on the device."""
        # Shares are equal: the mean of the ranks' means, in loss and in gradients, is that of all tokens.
        count = tokens.shape[0] * (tokens.shape[1] - 1)
        total = torch.zeros((), device=self._device)
        parts = tokens.split(self._settings.device_batch_sequences)
        for number, part in enumerate(parts, 1):
            run = self._spread or self.loss
            more = self._spread.accumulating() if self._spread and number < len(parts) else nullcontext()
            with more, _compiling(self._settings):
                loss = run(part) / count
                loss.backward()
            total += loss.detach()
        norm = whole(nn.utils.clip_grad_norm_(self.model.parameters(), self._settings.grad_clip))
        if self.ranks.size > 1:
            self.ranks.add(total)
            total /= self.ranks.size
        return torch.stack([total, norm])

    def apply(self, multiplier: float, momentum: float = MOMENTUM) -> None:
        """Step by the gradients, and forget them."""
        self.optimisers.set_momentum(momentum)
        self.optimisers.set_multiplier(multiplier)
        self.optimisers.step()
        self.model.zero_grad()


@contextmanager
def _compiling(settings: TrainingSettings) -> Iterator[None]:
    """What torch says where a model is compiled that cannot be, as one of our errors.

    Raises:
        TrainingError: it cannot, on this machine.
    """
    try:
        yield
    except Exception as error:
        if not settings.compile:
            raise
        from torch._dynamo.exc import BackendCompilerFailed

        if not isinstance(error, BackendCompilerFailed):
            raise
        why = " ".join(str(error.inner_exception).split())[:300]
        raise TrainingError(
            f"training.compile: the model cannot be compiled on this machine ({why}); install a C++ compiler (g++) "
            "there, or take the setting out"
        ) from error


def make_learner(config: NanoChatConfig, settings: TrainingSettings, ranks: Ranks, sharded: bool) -> Learner:
    """A learner of a model whose weights are yet to be loaded, on the ranks' device."""
    if sharded:
        return Learner(empty_model(config), settings, ranks, sharded)
    model: nn.Module = build_model(config)
    return Learner(model.to(ranks.device), settings, ranks)
