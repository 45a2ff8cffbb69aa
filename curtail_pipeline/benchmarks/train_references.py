"""What `curtail bench train` is compared with, on random tokens at equal shape, batch and length.

- `hand_written`: the same model in the loop one would write without this package. Loss over all logits at once, torch's
  own optimisers, no orders, no store, no checks.
- `nanochat`: model, optimisers and step of a checkout of nanochat as of October 2025, as its `scripts/base_train.py`
  puts them together.

Each runs in a process of its own, so that neither memory nor settings of torch are shared with what it is compared to.
"""

import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from curtail_pipeline.errors import SettingsError, TrainingError
from curtail_pipeline.settings.model_shape import DEPTH, HEAD_WIDTH
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.storage.records import Message, Record

WARM_STEPS = 2
"""Untimed: the first compiles."""

Step = Callable[[], torch.Tensor]
"""One optimiser step over a whole batch; its loss, on the device."""


class ReferenceTask(Message):
    """What to measure."""

    kind: Literal["hand_written", "nanochat"]
    checkout: str | None
    """Of nanochat."""
    training: TrainingSettings
    vocab_size: int
    device: str
    threads: int
    steps: int


class ReferenceSpeed(Record):
    """What was measured."""

    tokens_per_s: float
    step_s: float
    """Median."""
    peak_mib: int | None
    """Of GPU memory; null on a CPU."""


def require_checkout(path: str, preset: str) -> None:
    """Whether nanochat's training at this depth can be run from there.

    Raises:
        SettingsError: no checkout, or a preset without a depth.
    """
    if not (Path(path) / "nanochat" / "gpt.py").is_file():
        raise SettingsError(f"--nanochat {path} is no checkout of nanochat (no nanochat/gpt.py there); give its folder")
    if not DEPTH.fullmatch(preset):
        raise SettingsError(f"--nanochat goes by depth and --preset {preset} has none; use one such as d4 or d20")


def measure(task: ReferenceTask) -> ReferenceSpeed:
    """Measure in a process of its own.

    Raises:
        TrainingError: it failed; the message ends with what it said last.
    """
    command = [sys.executable, "-m", "curtail_pipeline.benchmarks.train_references"]
    given = {**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True"}  # as nanochat trains
    done = subprocess.run(command, input=task.model_dump_json(), env=given, text=True, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        raise TrainingError(f"{task.kind} ended with code {done.returncode} and said: {said[-1]}")
    return ReferenceSpeed.model_validate_json(done.stdout.splitlines()[-1])


def timed(task: ReferenceTask) -> ReferenceSpeed:
    """Measure in this process."""
    torch.set_num_threads(task.threads)
    step = (nanochat if task.kind == "nanochat" else hand_written)(task)
    seconds: list[float] = []
    for _ in range(WARM_STEPS + task.steps):
        begin = time.perf_counter()
        step().item()  # waits for the device
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[WARM_STEPS:])
    return ReferenceSpeed(
        tokens_per_s=round(task.training.total_batch_tokens / median, 1),
        step_s=round(median, 4),
        peak_mib=round(torch.cuda.max_memory_allocated() / 2**20) if task.device.startswith("cuda") else None,
    )


def random_parts(task: ReferenceTask) -> tuple[torch.Tensor, ...]:
    """A batch of random token ids, (sequences, T + 1) in each part that goes through the model at once."""
    settings = task.training
    shape = (settings.total_batch_tokens // settings.sequence_length, settings.sequence_length + 1)
    tokens = torch.from_numpy(np.random.default_rng(0).integers(task.vocab_size, size=shape))
    return tokens.to(task.device).split(settings.device_batch_sequences)


def hand_written(task: ReferenceTask) -> Step:
    """A step as one would write it."""
    from curtail_pipeline.training.attention import use_causal_attention
    from curtail_pipeline.training.optimisers import BETAS, EPSILON
    from curtail_pipeline.training.presets import build_model, initialise, model_config
    from curtail_pipeline.training.schedule import MOMENTUM

    settings = task.training
    torch.backends.cuda.matmul.fp32_precision = "tf32" if settings.tf32 else "ieee"
    config = model_config(settings, task.vocab_size)
    built = build_model(config)
    initialise(built, 0)
    use_causal_attention(built)
    model, dtype = cast(nn.Module, built).to(task.device).train(), getattr(torch, settings.dtype)
    body, embed, head = (model.get_submodule(name) for name in ("model", "model.embed_tokens", "lm_head"))
    cap = float(config.final_logit_softcapping or math.inf)

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        hidden = body(inputs_embeds=embed(tokens[:, :-1]).to(dtype), use_cache=False).last_hidden_state
        logits = head(hidden)
        logits = (cap * torch.tanh(logits / cap) if cap < math.inf else logits).float()
        return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    ends = [*embed.parameters(), *head.parameters()]
    adamw = torch.optim.AdamW(ends, lr=settings.unembedding_lr, betas=BETAS, eps=EPSILON, weight_decay=0.0, fused=True)
    matrices = [parameter for parameter in model.parameters() if all(parameter is not end for end in ends)]
    muon = torch.optim.Muon(matrices, settings.matrix_lr, momentum=MOMENTUM, weight_decay=settings.weight_decay)
    run = torch.compile(loss_of) if settings.compile else loss_of
    mixed = settings.dtype != "float32"

    def forward(part: torch.Tensor) -> torch.Tensor:
        with torch.autocast(part.device.type, dtype) if mixed else nullcontext():
            return run(part)

    return _step(model, forward, [adamw, muon], random_parts(task), settings.grad_clip)


def nanochat(task: ReferenceTask) -> Step:
    """nanochat's own step."""
    assert task.checkout is not None
    sys.path.insert(0, task.checkout)
    gpt = importlib.import_module("nanochat.gpt")
    settings, depth = task.training, DEPTH.fullmatch(task.training.preset)
    assert depth is not None
    layers = int(depth[1])
    width = 64 * layers
    heads = -(-width // HEAD_WIDTH)
    with torch.device("meta"):
        model = gpt.GPT(
            gpt.GPTConfig(
                sequence_len=settings.sequence_length, vocab_size=task.vocab_size, n_layer=layers, n_head=heads,
                n_kv_head=heads, n_embd=width,
            )
        )  # fmt: skip
    model.to_empty(device=task.device)
    model.init_weights()
    optimisers = model.setup_optimizers(
        unembedding_lr=settings.unembedding_lr,
        embedding_lr=settings.embedding_lr,
        matrix_lr=settings.matrix_lr,
        weight_decay=settings.weight_decay,
    )
    torch.set_float32_matmul_precision("high")
    compiled = torch.compile(model, dynamic=False)
    cuda = task.device.startswith("cuda")

    def forward(part: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext():
            return cast(torch.Tensor, compiled(part[:, :-1].contiguous(), part[:, 1:].contiguous()))

    return _step(model, forward, optimisers, random_parts(task), settings.grad_clip)


def _step(
    model: nn.Module,
    forward: Callable[[torch.Tensor], torch.Tensor],
    optimisers: list[torch.optim.Optimizer],
    parts: tuple[torch.Tensor, ...],
    clip: float,
) -> Step:
    def step() -> torch.Tensor:
        for part in parts:
            loss = forward(part)
            (loss / len(parts)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        for optimiser in optimisers:
            optimiser.step()
        model.zero_grad(set_to_none=True)
        return loss.detach()

    return step


if __name__ == "__main__":
    print(json.dumps(timed(ReferenceTask.read(sys.stdin.read(), "standard input")).model_dump()))
