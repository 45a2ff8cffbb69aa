"""Cross-entropy of a language-model head without ever holding all its logits.

Logits of a whole batch (tokens x vocabulary) are by far the largest tensor of a step. Working through the tokens in
chunks keeps a chunk's logits in cache on a CPU and within 3 GiB on a GPU, and its gradient is made while it is there.

With `compile: true` what is between a chunk's matrix products is compiled on a GPU, which is bound by memory there: its
operations are fused instead of each reading and writing all logits in float32. On a CPU it is not.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedConfig

from curtail_pipeline.training.presets import real_vocabulary

CHUNK_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 28, "fused": 1 << 29}
"""Logits held at a time: 1 MiB of float32 on a CPU (a core's cache), 1 GiB on a GPU, where up to three copies of them
are made. Fused kernels keep them in bfloat16, and twice as many: each chunk reads and writes the head's gradient once,
0.17 ms for that of a d20."""


def chunk_rows(device_type: str, vocabulary: int, fused: bool = False) -> int:
    """Tokens whose logits are held at a time; `fused` is as of `head_loss`, and changes nothing on a CPU."""
    kind = "cpu" if device_type == "cpu" else "fused" if fused else "cuda"
    return max(16, CHUNK_ELEMENTS[kind] // vocabulary)


def chunk_slopes(product: torch.Tensor, targets: torch.Tensor, cap: float | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed cross-entropy of a chunk, float32, and its slopes by `product`, in that one's type.

    Args:
        product: (tokens, vocabulary) logits, divided by `cap` if there is one.
        targets: (tokens, 1), int64.
        cap: as for `head_loss`.
    """
    bent = None if cap is None else torch.tanh(product.float())  # by an exponential and a quotient: 54 ms for 47 (H200)
    logits = product.float() if bent is None or cap is None else cap * bent
    if bent is None:  # a capped logit's exponential cannot overflow
        logits = logits - logits.amax(1, keepdim=True)
    weights = logits.exp()
    normaliser = weights.sum(1, keepdim=True)
    loss = (normaliser.log() - logits.gather(1, targets)).sum()
    slope = (
        weights * normaliser.reciprocal() - (torch.arange(product.shape[1], device=product.device) == targets).float()
    )
    if bent is not None:  # d cap tanh(x / cap) / dx = 1 - tanh(x / cap)^2
        slope = slope * (1 - bent.square())
    return loss, slope.to(product.dtype)


@cache
def fused_slopes() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`chunk_slopes` compiled; made when first asked for, as `torch.compile` alone imports 0.7 s of processor time."""
    return torch.compile(chunk_slopes, fullgraph=True)


def add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """Add `a @ b` to a float32 matrix; on a GPU within the product, whose own sums are float32."""
    if total.is_cuda and a.dtype != total.dtype:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)
    else:
        total += a @ b


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None
    ) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(hidden.dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            size = min(len(hidden), chunk_rows(hidden.device.type, weight.shape[0]))
            rows = torch.arange(size, device=hidden.device)
            # One chunk's memory for all chunks: fresh pages cost a CPU as much as the arithmetic.
            product = hidden.new_empty(size, weight.shape[0])
            space = torch.empty_like(product, dtype=torch.float32)
            for start in range(0, hidden.shape[0], size):
                h, t = hidden[start : start + size], targets[start : start + size, None]
                if cap is None:
                    logits = torch.mm(h, matrix.T, out=product[: len(h)]).float()
                    logits -= logits.amax(1, keepdim=True)
                    bent = None
                else:  # a capped logit's exponential cannot overflow
                    bent = torch.mm(h / cap, matrix.T, out=product[: len(h)]).float().tanh_()
                    logits = torch.mul(bent, cap, out=space[: len(h)])
                wanted = logits.gather(1, t)
                slope = logits.exp_()
                normaliser = slope.sum(1, keepdim=True)
                total += (normaliser.log() - wanted).sum()
                # normaliser * (softmax - onehot); rows are divided by it where there are fewer elements.
                slope[rows[: len(h)], t[:, 0]] -= normaliser[:, 0]
                if bent is not None:  # d cap tanh(x / cap) / dx = 1 - tanh(x / cap)^2
                    slope.addcmul_(slope, bent.square_(), value=-1)
                share = normaliser.reciprocal_()
                grad = grad_hidden[start : start + size]
                if hidden.dtype == torch.float32:
                    torch.mm(slope, matrix, out=grad).mul_(share)
                    grad_weight.addmm_(slope.T, h * share)
                else:  # a narrow type holds slopes, not sums of exponentials
                    slope = slope.mul_(share).to(hidden.dtype)
                    torch.mm(slope, matrix, out=grad)
                    add_product(grad_weight, slope.T, h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0], None, None


class _FusedHeadLoss(_HeadLoss):
    """`_HeadLoss`, its arithmetic between matrix products compiled."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None
    ) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            matrix = weight.to(hidden.dtype)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            grad_hidden = torch.empty_like(hidden)
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)
            for start in range(0, len(hidden), size := chunk_rows(hidden.device.type, weight.shape[0], True)):
                h, t = hidden[start : start + size], targets[start : start + size, None]
                loss, slope = fused_slopes()((h if cap is None else h / cap) @ matrix.T, t, cap)
                total += loss
                torch.mm(slope, matrix, out=grad_hidden[start : start + size])
                add_product(grad_weight, slope.T, h)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total


def head_of(model: nn.Module) -> tuple[torch.Tensor, float | None]:
    """The rows of a NanoChat model's head that stand for real ids, and the bound of its logits."""
    config = cast(PreTrainedConfig, model.config)
    cap: float | None = config.final_logit_softcapping
    return model.get_parameter("lm_head.weight")[: real_vocabulary(config)], cap


def head_loss(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, cap: float | None, fused: bool = False
) -> torch.Tensor:
    """Summed cross-entropy in nats; differentiable in `hidden` and `weight`.

    Args:
        hidden: (tokens, width), last hidden states.
        weight: (vocabulary, width), the head.
        targets: (tokens,), int64.
        cap: logits are `cap * tanh(logits / cap)`; none for no cap.
        fused: by compiled kernels; differs by rounding.
    """
    loss: torch.Tensor = (_FusedHeadLoss if fused else _HeadLoss).apply(hidden, weight, targets, cap)
    return loss


class TokenLoss(nn.Module):
    """Summed cross-entropy in nats of a NanoChat model over (B, T + 1) token ids.

    Args:
        dtype: in which matrices are multiplied, and of what flows between layers.
        compiled: by `torch.compile`; the head on a GPU alone, where it is bound by memory.
        by_layer: compile each block by itself, as a model must be that gathers its blocks one by one.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, compiled: bool, by_layer: bool = False) -> None:
        super().__init__()
        self.model, self._dtype, self._compiled = model, dtype, compiled
        self.hidden = torch.compile(self.states, fullgraph=True) if compiled and not by_layer else self.states
        if compiled and by_layer:
            for layer in cast(nn.ModuleList, model.get_submodule("model.layers")):
                layer.compile(fullgraph=True)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        device = tokens.device.type
        with torch.autocast(device, self._dtype) if self._dtype != torch.float32 else nullcontext():
            hidden = self.hidden(tokens[:, :-1])
            weight, cap = head_of(self.model)
            fused = self._compiled and device != "cpu"
            return head_loss(hidden.flatten(0, 1).to(self._dtype), weight, tokens[:, 1:].flatten(), cap, fused)

    def states(self, ids: torch.Tensor) -> torch.Tensor:
        """What the head multiplies, (B, T, width), for (B, T) token ids."""
        embedded = self.model.get_submodule("model.embed_tokens")(ids).to(self._dtype)
        decoder = self.model.get_submodule("model")
        return cast(torch.Tensor, decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state)


@torch.no_grad()
def token_losses(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats of each predicted token, for (B, T + 1) token ids: (B, T), float32."""
    decoder = cast(nn.Module, model.model)
    hidden = decoder(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state.flatten(0, 1)
    targets = tokens[:, 1:].flatten()
    rows, cap = head_of(model)
    weight = rows.to(hidden.dtype)
    size = chunk_rows(hidden.device.type, weight.shape[0])
    losses = []
    for h, t in zip(hidden.split(size), targets.split(size), strict=True):
        logits = (h @ weight.T).float()
        if cap is not None:
            logits = logits.div_(cap).tanh_().mul_(cap)
        losses.append(functional.cross_entropy(logits, t, reduction="none"))
    return torch.cat(losses).view(tokens.shape[0], -1)
