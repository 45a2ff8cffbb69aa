"""Held-out loss of a checkpoint: what the checkpoint_evaluation asset reports."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.storage.records import Message


class Heldout(Protocol):
    """Where held-out sequences come from (`corpus.batches.HeldoutReader`)."""

    @property
    def bytes_per_token(self) -> float:
        """Mean UTF-8 bytes of a held-out token."""

    def batches(self, sequences_per_batch: int, max_sequences: int | None = None) -> Iterator[npt.NDArray[np.int64]]:
        """Arrays of token ids, (sequences, sequence_length + 1), always in the same order."""


class Evaluation(Message):
    """Held-out loss of a checkpoint."""

    loss: float
    """Nats per token."""
    perplexity: float
    """Its exponential."""
    bits_per_byte: float
    """loss / ln 2 / bytes per token of the whole held-out text."""
    tokens: int
    """That were predicted."""


def evaluate(
    checkpoint_folder: Path,
    heldout: Heldout,
    *,
    max_sequences: int | None = None,
    batch_sequences: int = 16,
    device: str = "cpu",
) -> Evaluation:
    """Mean held-out loss of a checkpoint's folder, in float32.

    Args:
        checkpoint_folder: what `AutoModelForCausalLM.from_pretrained` loads.
        heldout: gives the sequences.
        max_sequences: evaluate the first so many; all when not given.
        batch_sequences: sequences per forward pass.
        device: of the model. A GPU's result differs from a CPU's by rounding, and repeats there.

    Raises:
        TrainingError: the folder holds no model, or there are no held-out sequences.
    """
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    from curtail_pipeline.training.loss import token_losses

    disable_progress_bar()
    try:
        model: nn.Module = AutoModelForCausalLM.from_pretrained(
            checkpoint_folder, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{checkpoint_folder} is not a checkpoint that transformers can load ({' '.join(str(error).split())}); "
            "evaluate a committed one (`curtail checkpoints list`)"
        ) from error
    model.to(device).eval()
    total, count = torch.zeros((), dtype=torch.float64, device=device), 0
    for batch in heldout.batches(batch_sequences, max_sequences):
        losses = token_losses(model, torch.from_numpy(np.asarray(batch, dtype=np.int64)).to(device))
        total += losses.double().sum()  # read at the end: the host does not wait for the device between batches
        count += losses.numel()
    if count == 0:
        raise TrainingError(
            "there are no held-out sequences to evaluate on; raise corpus.heldout_fraction or give a larger corpus"
        )
    loss = float(total) / count
    return Evaluation(
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=loss / math.log(2) / heldout.bytes_per_token,
        tokens=count,
    )
