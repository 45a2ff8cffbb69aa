"""How large a model is, from its settings alone: what its weights cost to load, send and merge depends on it."""

from typing import Final

from curtail_pipeline.settings.training_settings import DEPTH, TrainingSettings

VOCABULARY_MULTIPLE: Final = 64
"""Rows of embedding and head are padded to it; see `training.presets`."""
WIDTH_PER_LAYER, HEAD_WIDTH = 64, 128
"""nanochat's aspect ratio and head width (scripts/base_train.py)."""


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


def parameters_of(training: TrainingSettings, vocab_size: int) -> int:
    """Number of parameters of the preset with its overrides: embedding, head, and per block four matrices of attention
    and two of the MLP. `training.presets.parameter_count` counts the same on the model itself.

    Args:
        vocab_size: of the tokenizer; the override of that name comes first.
    """
    values = {"vocab_size": vocab_size, **preset_shape(training.preset)}
    values |= {key: value for key, value in training.model_overrides.items() if isinstance(value, int)}
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    keys = hidden // heads * values.get("num_key_value_heads", heads)
    rows = -(-values["vocab_size"] // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    block = 2 * hidden * hidden + 2 * hidden * keys + 2 * hidden * values["intermediate_size"]
    return 2 * rows * hidden + values["num_hidden_layers"] * block
