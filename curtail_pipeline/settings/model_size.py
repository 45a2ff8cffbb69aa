"""How large a model is, from its settings alone: what its weights cost to load, send and merge depends on it."""

from typing import Final

from curtail_pipeline.settings.model_shape import preset_shape
from curtail_pipeline.settings.training_settings import TrainingSettings

VOCABULARY_MULTIPLE: Final = 64
"""Rows of embedding and head are padded to it; see `training.presets`."""


def parts_of(training: TrainingSettings) -> int:
    """Number of layers, embedding and head among them: what fragments of the weights are made of."""
    layers = training.model_overrides.num_hidden_layers
    return (layers or preset_shape(training.preset)["num_hidden_layers"]) + 2


def parameters_of(training: TrainingSettings, vocab_size: int) -> int:
    """Number of parameters of the preset with its overrides: embedding, head, and per block four matrices of attention
    and two of the MLP. `training.presets.parameter_count` counts the same on the model itself.

    Args:
        vocab_size: of the tokenizer; the override of that name comes first.
    """
    embedding, blocks = _parameters(training, vocab_size)
    return embedding + blocks


def state_values_of(training: TrainingSettings, vocab_size: int) -> int:
    """Number of values that the optimisers keep: AdamW two for each parameter of embedding and head, Muon one for each
    of the others."""
    embedding, blocks = _parameters(training, vocab_size)
    return 2 * embedding + blocks


def _parameters(training: TrainingSettings, vocab_size: int) -> tuple[int, int]:
    """Those of embedding and head, and of all blocks."""
    values = {"vocab_size": vocab_size, **preset_shape(training.preset)}
    values |= {key: value for key, value in training.model_overrides.given().items() if isinstance(value, int)}
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    keys = hidden // heads * values.get("num_key_value_heads", heads)
    rows = -(-values["vocab_size"] // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    block = 2 * hidden * hidden + 2 * hidden * keys + 2 * hidden * values["intermediate_size"]
    return 2 * rows * hidden, values["num_hidden_layers"] * block
