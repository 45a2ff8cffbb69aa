"""What training a model takes of a device's memory, said before the first step.

The terms, with `d` the width, `i` the MLP's, `a` and `k` the widths of all query and of all key heads, `h` and `g` the
numbers of these heads, `r` the bytes of the training type, and `w` those of its norms (4, and `r` when compiled):

- parameters and gradients: float32; AdamW keeps two float32 per element of embedding and head, Muon one per element of
  a matrix (`optimisers`).
- activations: what autograd keeps for the backward pass. A layer keeps, per token, the inputs of two norms `2wd` and
  their outputs `2rd`, queries and keys before their norms `w(a + k)`, after them `r(a + k)`, values `rk`, what
  attention gives `ra`, both halves of the squared ReLU `2ri`, and float32 factors of norms and softmax `8 + 8h + 4g`.
  Counted in the transformers model that is trained, and, compiled, in the graph that PyTorch's partitioner leaves
  (`tests/training/test_memory.py` counts again). In bfloat16 the cast matrices are kept as well.
- workspace: the larger of what the head holds, a chunk of logits with its slopes and the head's gradient
  (`loss.head_loss`), and of three gradients as large as what the MLP's activation gives, beside a matrix's, while the
  backward pass goes through the last block.

Over several devices each has Muon's state for its share of the matrices. Sharded (FSDP2) it has its share of
parameters, gradients and states, and as *gathered* what is whole for a time: embedding and head with their gradients,
the block at work, its gradient, and the block that is fetched meanwhile.

Workspace of kernels, fragmentation and what CUDA itself takes are not in it.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import NanoChatConfig

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training.loss import chunk_rows
from curtail_pipeline.training.presets import parameter_count

GIB = 2**30
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Memory:
    """Bytes of each kind."""

    parameters: int
    gradients: int
    optimiser: int
    activations: int
    workspace: int
    gathered: int = 0

    @property
    def total(self) -> int:
        return sum(vars(self).values())

    def __str__(self) -> str:
        shares = ", ".join(f"{name} {size / GIB:.2f}" for name, size in vars(self).items() if size)
        return f"{self.total / GIB:.2f} GiB ({shares})"


def estimate(
    config: NanoChatConfig,
    settings: TrainingSettings,
    device_type: str,
    batch: int,
    devices: int = 1,
    sharded: bool = False,
) -> Memory:
    """What a step takes at its peak, the gradients of a whole step counted beside the last batch's activations.

    Args:
        config: of the model.
        settings: type, compilation and sequence length.
        device_type: `cpu` or `cuda`; how many logits are held at a time depends on it.
        batch: sequences of a forward pass.
        devices: that train together; what each of them takes.
        sharded: whether each has but a share of the model.
    """
    parameters = parameter_count(config)
    tables = 2 * config.vocab_size * config.hidden_size
    matrices, shares = parameters - tables, devices if sharded else 1
    return Memory(
        parameters=-(-4 * parameters // shares),
        gradients=-(-4 * parameters // shares),
        optimiser=-(-2 * 4 * tables // shares) - (-4 * matrices // devices),
        activations=activation_bytes(config, settings, batch),
        workspace=max(logit_bytes(config, settings, device_type, batch), _backward_bytes(config, settings, batch)),
        gathered=4 * (2 * tables + 3 * matrices // config.num_hidden_layers) if sharded else 0,
    )


def activation_bytes(config: NanoChatConfig, settings: TrainingSettings, batch: int) -> int:
    """What autograd keeps of a forward pass over so many sequences, the head left out."""
    wide = 2 if settings.dtype == "bfloat16" else 4
    norm = wide if settings.compile else 4
    length, tokens = settings.sequence_length, batch * settings.sequence_length
    width, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    heads = config.num_attention_heads
    key_heads = config.num_key_value_heads or heads
    head = int(getattr(config, "head_dim", width // heads))
    queries, keys = heads * head, key_heads * head
    layer = 2 * (norm + wide) * width + norm * (queries + keys) + wide * (2 * queries + 2 * keys + 2 * inner)
    layer += 8 + 8 * heads + 4 * key_heads
    ends = (1 if settings.compile else 2) * norm * width + 8
    positions = 2 * wide * length * head
    casts = 2 * layers * (2 * width * (queries + keys) + 2 * width * inner) if wide == 2 else 0
    return tokens * (layers * layer + ends) + 8 * batch * (length + 1) + positions + casts


def logit_bytes(config: NanoChatConfig, settings: TrainingSettings, device_type: str, batch: int) -> int:
    """What `loss.head_loss` holds for so many sequences."""
    wide = 2 if settings.dtype == "bfloat16" else 4
    tokens, vocabulary = batch * settings.sequence_length, config.vocab_size
    fused = settings.compile and device_type == "cuda"
    chunk = min(tokens, chunk_rows(device_type, vocabulary, fused)) * vocabulary
    held = (2 * wide if fused else 8 if wide == 4 else 2 + 4 + 4 + 2) * chunk
    rows = vocabulary * config.hidden_size
    # the gradient as it is summed, as it is handed on, and in bfloat16 the matrix and, on a CPU, a chunk's share of it
    narrow = (2 if device_type == "cuda" else 2 * 2) * rows if wide == 2 else 0
    return held + 2 * 4 * rows + narrow + wide * tokens * config.hidden_size


def _backward_bytes(config: NanoChatConfig, settings: TrainingSettings, batch: int) -> int:
    wide, inner = 2 if settings.dtype == "bfloat16" else 4, config.intermediate_size
    return 3 * wide * batch * settings.sequence_length * inner + 4 * inner * config.hidden_size


def evaluation_bytes(config: NanoChatConfig, settings: TrainingSettings, device_type: str, batch: int) -> int:
    """What `heldout_loss.evaluate` takes: weights, a chunk of logits three times over, what flows through a layer."""
    tokens = batch * settings.sequence_length
    logits = min(tokens, chunk_rows(device_type, config.vocab_size)) * config.vocab_size
    flowing = tokens * (8 * config.hidden_size + 2 * config.intermediate_size)
    return 4 * (parameter_count(config) + 3 * logits + flowing)


def capacity(device: torch.device) -> int:
    """Bytes that this process may take: what is free on a GPU or its own there; all that the machine or container has
    otherwise, since what others hold on a CPU comes and goes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.exists() else "max"
    machine = psutil.virtual_memory().total
    return machine if limit == "max" else min(machine, int(limit))


@dataclass(frozen=True)
class Fit:
    """How a training fits its devices."""

    memory: Memory
    """Of each."""
    sharded: bool


def require_fit(
    config: NanoChatConfig,
    settings: TrainingSettings,
    device: torch.device,
    devices: int = 1,
    parallel: str = "auto",
) -> Fit:
    """How a training fits: with the whole model on each device where `parallel` allows it and it does, else sharded.

    Raises:
        TrainingError: it does not; the message has the numbers and the largest batch that would fit.
    """
    sequences = settings.total_batch_tokens // settings.sequence_length // devices
    there = capacity(device) // (devices if device.type == "cpu" else 1)
    batch = min(settings.device_batch_sequences, sequences)
    ways = [False] if devices == 1 else {"auto": [False, True], "ddp": [False], "fsdp": [True]}[parallel]
    for sharded in ways:
        needed = estimate(config, settings, device.type, batch, devices, sharded)
        if needed.total <= there:
            return Fit(needed, sharded)
    smaller = (size for size in range(batch - 1, 0, -1) if sequences % size == 0)
    fitting = next(
        (s for s in smaller if estimate(config, settings, device.type, s, devices, sharded).total <= there), 0
    )
    fix = (
        f"set training.device_batch_sequences to {fitting}, the largest that fits"
        if fitting
        else "not even one sequence at a time fits: choose a smaller training.preset or sequence_length"
    )
    way = "" if devices == 1 else f" on each of {devices} devices ({'fsdp' if sharded else 'ddp'})"
    raise TrainingError(
        f"training {settings.preset} with {batch} sequences of {settings.sequence_length} tokens takes {needed}{way}, "
        f"and {device} has {there / GIB:.2f} GiB; {fix}"
    )
