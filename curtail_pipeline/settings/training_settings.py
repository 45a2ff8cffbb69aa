"""Settings of model and optimisers (the `training` section of an experiment)."""

from typing import Literal

from pydantic import Field, JsonValue, field_serializer, field_validator, model_validator

from curtail_pipeline.settings.model_shape import DEPTH, ModelOverrides, require_shape
from curtail_pipeline.settings.section import Section


class TrainingSettings(Section):
    preset: str = "tiny"
    """`tiny`, or a depth: `d4`, `d8`, `d12`, `d20` or any even one. All else follows from it as in nanochat."""
    model_overrides: ModelOverrides = ModelOverrides()
    """What replaces the preset's values."""
    sequence_length: int = Field(default=2048, ge=8)
    device_batch_sequences: int = Field(default=16, ge=1)
    """Sequences per forward pass; the rest of a step is gradient accumulation."""
    total_batch_tokens: int = Field(default=524_288, ge=8)
    """Tokens of one optimiser step; a multiple of `sequence_length`."""
    matrix_lr: float = Field(default=0.02, gt=0)
    """Muon, for the matrices of the blocks."""
    embedding_lr: float = Field(default=0.2, gt=0)
    """AdamW, for the token embedding."""
    unembedding_lr: float = Field(default=0.004, gt=0)
    """AdamW, for the output head."""
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    momentum_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which Muon's momentum rises from 0.85 to 0.95, which it has from the start with 0. nanochat's base
    training takes 300."""
    decay_fraction: float = Field(default=0.2, ge=0, le=1)
    """Share of the job's steps over which the learning rate falls linearly to zero."""
    grad_clip: float = Field(default=1.0, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    tf32: bool = False
    """Let an NVIDIA GPU round the inputs of float32 matrix products to 10 bits of mantissa (TensorFloat-32, from Ampere
    on). A CPU computes the same either way."""
    deterministic: bool = True
    """Take only algorithms that give the same bits from the same input. On a GPU some operations then take slower ones
    (`torch.use_deterministic_algorithms` lists them): a d20's step 11 % longer on an H200, by attention above all
    (`docs/scale.md`). Without it a replay on a GPU is not bit-identical."""
    keep_inner_states: int | None = Field(default=None, ge=1)
    """Snapshots of a site's optimiser state to keep; all when not given."""
    evaluation_sequences: int | None = Field(default=512, ge=1)
    """Held-out sequences a checkpoint is evaluated on at most, the first so many: a million tokens at a
    `sequence_length` of 2048. All of them with null."""

    @field_validator("preset")
    @classmethod
    def _known(cls, preset: str) -> str:
        depth = DEPTH.fullmatch(preset)
        if preset != "tiny" and (depth is None or int(depth[1]) < 2 or int(depth[1]) % 2):
            raise ValueError("use tiny, or an even depth such as d4, d8, d12, d20")
        return preset

    @field_serializer("model_overrides")
    def _given(self, overrides: ModelOverrides) -> dict[str, JsonValue]:
        return overrides.given()

    @model_validator(mode="after")
    def _consistent(self) -> "TrainingSettings":
        require_shape(self.preset, self.model_overrides, self.sequence_length)
        if self.total_batch_tokens % self.sequence_length:
            raise ValueError(
                f"total_batch_tokens {self.total_batch_tokens} is not a multiple of sequence_length "
                f"{self.sequence_length}; choose one that is"
            )
        sequences = self.total_batch_tokens // self.sequence_length
        if sequences % min(self.device_batch_sequences, sequences):
            raise ValueError(
                f"device_batch_sequences {self.device_batch_sequences} does not divide the {sequences} sequences of a "
                f"step (total_batch_tokens {self.total_batch_tokens} / sequence_length {self.sequence_length}); choose "
                "one that does"
            )
        return self
