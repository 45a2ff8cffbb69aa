"""Causal attention without a mask.

While `torch.compile` traces, transformers builds a (B, 1, T, T) mask for its own attention functions, and with a mask
PyTorch cannot take its flash kernels. For a function registered under a name of its own it builds none.
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
    found = functional.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, is_causal=True, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
    )
    return found.transpose(1, 2).contiguous(), None


AttentionInterface.register(CAUSAL, causal_attention)


def use_causal_attention(model: nn.Module) -> None:
    """Have a transformers model, whose training neither pads nor caches, attend without a mask."""
    cast(PreTrainedModel, model).set_attn_implementation(CAUSAL)
