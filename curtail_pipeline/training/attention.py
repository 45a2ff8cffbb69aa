"""Causal attention without a mask, at positions that are known beforehand.

While `torch.compile` traces, transformers builds a (B, 1, T, T) mask for its own attention functions, and with a mask
PyTorch cannot take its flash kernels. For a function registered under a name of its own it builds none.

Its rotary factors it computes anew in each pass; compiled, they are computed in each layer, once for every query and
key. Those of a training's sequences, which all begin at position 0, never change (`fix_positions`).
"""

from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

CAUSAL = "curtail_causal"
"""The name that the function is registered under."""


def causal_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    **_: object,
) -> tuple[torch.Tensor, None]:
    """Attention of whole sequences that begin at position 0; the arguments are those of transformers' interface.

    Args:
        query: (B, heads, T, head width).
        key: (B, key heads, T, head width); `value` likewise.
        attention_mask: none; there is no padding in training.

    Returns:
        (B, T, heads, head width), and no attention weights.
    """
    assert attention_mask is None
    # As projections give them, a token's heads side by side, so that a compiled model does not change the layout and
    # copy it back for the next product; uncompiled they are so already.
    query, key, value = (each.transpose(1, 2).contiguous().transpose(1, 2) for each in (query, key, value))
    found = functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL, causal_attention)


def use_causal_attention(model: nn.Module) -> None:
    """Have a transformers model, whose training neither pads nor caches, attend without a mask."""
    cast(PreTrainedModel, model).set_attn_implementation(CAUSAL)


class Positions(nn.Module):
    """Rotary factors of positions 0 ... `length` - 1, in place of the module that computes them.

    Args:
        rotary: transformers' module.
        dtype: of the factors, that of what flows between layers.
    """

    cos: torch.Tensor
    sin: torch.Tensor

    def __init__(self, rotary: nn.Module, length: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        like, ids = torch.empty(0, dtype=dtype, device=device), torch.arange(length, device=device)[None]
        for name, factors in zip(("cos", "sin"), rotary(like, position_ids=ids), strict=True):
            self.register_buffer(name, factors, persistent=False)

    def forward(self, hidden: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        length = hidden.shape[1]
        return self.cos[:, :length], self.sin[:, :length]


def fix_positions(model: nn.Module, length: int, dtype: torch.dtype, device: torch.device) -> None:
    """Compute the rotary factors of a NanoChat model on its device once; `length` is that of its sequences."""
    decoder = model.get_submodule("model")
    decoder.rotary_emb = Positions(decoder.get_submodule("rotary_emb"), length, dtype, device)
