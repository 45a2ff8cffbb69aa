"""The shape of the model: presets, what may be set in their place, and which shapes no model can have.

Checked when the experiment is read, long before a window opens.
"""

import re
from typing import Annotated, Final, Literal

from pydantic import Field, JsonValue

from curtail_pipeline.settings.section import Section

DEPTH: Final = re.compile(r"d(\d+)")
WIDTH_PER_LAYER, HEAD_WIDTH = 64, 128
"""nanochat's aspect ratio and head width (scripts/base_train.py)."""

Activation = Literal["relu2", "relu", "gelu", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "silu", "mish"]
"""Activations without parameters, by transformers' names; the optimisers would not train any."""
Count = Annotated[int, Field(ge=1, strict=True)]


class ModelOverrides(Section):
    """What `training.model_overrides` may set.

    Left out is what the optimisers or a bit-identical replay rely on (no biases, no tied head, no dropout) and the
    special tokens, which the tokenizer decides.
    """

    final_logit_softcapping: float | None = Field(default=None, gt=0)
    hidden_act: Activation | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    max_position_embeddings: Count | None = None
    num_attention_heads: Count | None = None
    num_hidden_layers: Count | None = None
    num_key_value_heads: Count | None = None
    rms_norm_eps: float | None = Field(default=None, gt=0)
    rope_parameters: dict[str, JsonValue] | None = None
    vocab_size: Count | None = None

    def given(self) -> dict[str, JsonValue]:
        """What is set, by name."""
        return self.model_dump(exclude_none=True)


def preset_shape(preset: str) -> dict[str, int]:
    """The config values that a preset stands for; `TrainingSettings` has checked its name."""
    depth = DEPTH.fullmatch(preset)
    layers = int(depth[1]) if depth else 2
    width = WIDTH_PER_LAYER * layers if depth else 64
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": -(-width // HEAD_WIDTH),
    }


def require_shape(preset: str, overrides: ModelOverrides, sequence_length: int) -> None:
    """
    Raises:
        ValueError: heads that do not fit the width or each other, or too few positions.
    """
    shape = preset_shape(preset)
    hidden = overrides.hidden_size or shape["hidden_size"]
    heads = overrides.num_attention_heads or shape["num_attention_heads"]
    shared = overrides.num_key_value_heads or heads
    positions = overrides.max_position_embeddings or sequence_length
    if hidden % (2 * heads):
        raise ValueError(
            f"hidden_size {hidden} over num_attention_heads {heads} gives no even head width (rotary positions need "
            "one); choose a hidden_size that is a multiple of twice the heads"
        )
    if heads % shared:
        raise ValueError(
            f"num_key_value_heads {shared} does not divide num_attention_heads {heads}; choose one that does"
        )
    if positions < sequence_length:
        raise ValueError(
            f"max_position_embeddings {positions} is below sequence_length {sequence_length}; raise it or leave it out"
        )
