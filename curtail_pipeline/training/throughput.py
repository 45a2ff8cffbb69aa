"""How much of a device's arithmetic a training uses: model FLOPs utilisation (MFU).

    MFU = tokens/s x FLOPs per token / (devices x peak FLOP/s)
    FLOPs per token = 6 (N - E) + 12 L H Q T

with `N` parameters, `E` those of the embedding, which is looked up and not multiplied, `L` layers, `H` heads, `Q` their
width and `T` the sequence length: what the model needs for forward and backward pass, recomputation left out (PaLM,
arXiv:2204.02311, appendix B; nanochat counts the same).
"""

from typing import Final

import torch
from transformers import NanoChatConfig

from curtail_pipeline.training.presets import parameter_count

PEAK_FLOPS: Final = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H200": 989.4e12,
}
"""Dense bfloat16 products of a device's tensor units per second, by CUDA's name of it (NVIDIA's data sheets)."""


def flops_per_token(config: NanoChatConfig, sequence_length: int) -> int:
    """Floating-point operations that a token costs in training."""
    multiplied = parameter_count(config) - config.vocab_size * config.hidden_size
    heads = config.num_attention_heads
    head = int(getattr(config, "head_dim", config.hidden_size // heads))
    return 6 * multiplied + 12 * config.num_hidden_layers * heads * head * sequence_length


def peak_flops(device: torch.device) -> float | None:
    """Peak FLOP/s of a device in bfloat16, whatever the training's type; None where it is not known, as for a CPU."""
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def mfu(tokens_per_s: float, flops: int, peak: float | None, devices: int = 1) -> float | None:
    """Share in [0, 1] of the peak of so many devices; None where one's is not known."""
    return tokens_per_s * flops / (devices * peak) if peak else None
