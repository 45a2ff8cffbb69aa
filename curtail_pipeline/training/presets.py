"""Model presets and the initial checkpoint.

All presets are NanoChat (nanochat's transformer as Hugging Face's `NanoChatForCausalLM`): rotary positions, RMS norms
without parameters, squared ReLU, untied head, logits capped by 15 tanh(x / 15). One dial as
in nanochat, the depth: the width is 64 per layer, heads are 128 wide, the MLP is four times as wide as the model. `d20`
with a vocabulary of 65,536 has 560,988,160 parameters.

The rows of embedding and head are padded to a multiple of 64, which matrix units like. The rows beyond the real ids
(`real_vocabulary` of the config) are never trained and never counted: loss and evaluation leave them out.
"""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.model_shape import preset_shape
from curtail_pipeline.settings.model_size import VOCABULARY_MULTIPLE
from curtail_pipeline.settings.training_settings import TrainingSettings

if TYPE_CHECKING:
    import torch
    from transformers import NanoChatConfig, PreTrainedConfig, PreTrainedModel


def model_config(settings: TrainingSettings, vocab_size: int, **token_ids: int | None) -> "NanoChatConfig":
    """The Hugging Face config of the experiment's model.

    Args:
        settings: preset, overrides and sequence length (which bounds the positions).
        vocab_size: number of token ids; the override of that name may only be larger.
        token_ids: `bos_token_id`, `eos_token_id`; none by default. There is no padding id: the embedding of one
            would never be trained.

    Raises:
        TrainingError: a vocabulary that is too small, or values that transformers refuses.
    """
    from transformers import NanoChatConfig

    values: dict[str, JsonValue] = {
        **preset_shape(settings.preset),
        "max_position_embeddings": settings.sequence_length,
        "vocab_size": vocab_size,
        **settings.model_overrides.given(),
    }
    real = values["vocab_size"]
    if not isinstance(real, int) or real < vocab_size:
        raise TrainingError(
            f"training.model_overrides: vocab_size {real!r} cannot hold the {vocab_size} ids of the "
            "tokenizer; give a larger one or none"
        )
    values["vocab_size"] = -(-real // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    ids: dict[str, JsonValue] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, **token_ids}
    try:
        return NanoChatConfig.from_dict({"dtype": "float32", "real_vocabulary": real, **ids, **values})
    except Exception as error:  # the config class raises its own validation errors
        raise TrainingError(f"training.model_overrides: {' '.join(str(error).split())}; correct the value") from error


def real_vocabulary(config: "PreTrainedConfig") -> int:
    """Ids that a model can predict; rows beyond them are padding."""
    return int(getattr(config, "real_vocabulary", config.vocab_size))


def parameter_count(config: "NanoChatConfig") -> int:
    """Number of parameters, counted on the meta device (allocates nothing)."""
    return sum(p.numel() for p in empty_model(config).parameters())


def empty_model(config: "NanoChatConfig") -> "PreTrainedModel":
    """The model in float32 on the meta device, which holds nothing."""
    import torch
    from transformers import NanoChatForCausalLM

    with torch.device("meta"):
        return NanoChatForCausalLM(config)


def place_rotary(model: "torch.nn.Module", device: "torch.device | str") -> None:
    """Give an emptied model its rotary frequencies: no weights, they follow from the config and are never stored."""
    decoder = model.get_submodule("model")
    decoder.rotary_emb = type(decoder.get_submodule("rotary_emb"))(model.config).to(device)


def build_model(config: "NanoChatConfig") -> "PreTrainedModel":
    """The model on the CPU in float32 with parameters not yet set."""
    model = empty_model(config)
    model.to_empty(device="cpu")
    place_rotary(model, "cpu")
    return model


def initialise(model: "torch.nn.Module", seed: int) -> None:
    """Fill every parameter as nanochat does; the values depend on the seed and the shapes alone.

    Projections that write to the residual stream (`o_proj`, `fc2`) and the head start at zero, the embedding is
    N(0, 1), other matrices are N(0, s) with s = min(1, sqrt(out / in)) / sqrt(in) (arXiv:2310.17813). The head at zero
    makes the first loss exactly ln(vocabulary).
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "fc2.weight")) or name == "lm_head.weight":
                parameter.zero_()
                continue
            rows, columns = parameter.shape
            std = 1.0 if name.endswith("embed_tokens.weight") else min(1.0, (rows / columns) ** 0.5) / columns**0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def init_checkpoint(settings: TrainingSettings, tokenizer_folder: Path, out_folder: Path, seed: int) -> list[str]:
    """Write the initialised model as a Hugging Face folder that `from_pretrained` loads.

    Writes `config.json`, `generation_config.json`, `model.safetensors` (float32) and copies the tokenizer's files.

    Args:
        settings: preset and overrides.
        tokenizer_folder: what `AutoTokenizer.from_pretrained` reads; decides vocabulary and special tokens.
        out_folder: created when absent.
        seed: of the weights.

    Returns:
        The names of the files written.

    Raises:
        TrainingError: the tokenizer cannot be read, or the model's shape is impossible.
    """
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from curtail_pipeline.training.weights import write_tensors

    try:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    except (OSError, ValueError) as error:
        raise TrainingError(
            f"{tokenizer_folder} has no tokenizer that transformers can read ({' '.join(str(error).split())}); "
            "materialise `tokenizer` again or name another folder"
        ) from error
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    eos = bos if eos is None else eos
    vocab_size = max(tokenizer.get_vocab().values()) + 1
    config = model_config(settings, vocab_size, bos_token_id=bos, eos_token_id=eos)
    model = build_model(config)
    initialise(model, seed)
    out_folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [type(model).__name__]
    config.save_pretrained(out_folder)
    padding = list(range(real_vocabulary(config), config.vocab_size))
    GenerationConfig(
        bos_token_id=bos, eos_token_id=eos, pad_token_id=eos, suppress_tokens=padding or None
    ).save_pretrained(out_folder)
    write_tensors(out_folder / "model.safetensors", model.state_dict())
    for source in sorted(Path(tokenizer_folder).iterdir()):
        if source.is_file() and source.name not in {"config.json", "generation_config.json", "model.safetensors"}:
            shutil.copyfile(source, out_folder / source.name)
    return sorted(p.name for p in out_folder.iterdir() if p.is_file())


def read_config(text: bytes, source: str) -> "NanoChatConfig":
    """Parse a `config.json`; `source` names it in errors.

    Raises:
        TrainingError: not the config of a NanoChat model.
    """
    from transformers import NanoChatConfig

    try:
        content = json.loads(text)
    except ValueError as error:
        raise TrainingError(f"{source} is not valid JSON ({error}); restore it from its checkpoint's parent") from error
    found = content.get("model_type") if isinstance(content, dict) else None
    if found != "nanochat":
        raise TrainingError(f"{source} describes a {found!r} model; this trainer trains 'nanochat' models")
    return NanoChatConfig.from_dict(content)
