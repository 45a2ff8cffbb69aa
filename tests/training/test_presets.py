"""Presets: their size, their initial weights, and that Hugging Face alone loads them."""

import json
import math
import subprocess
import sys
from typing import get_args

import pytest
import torch
from pydantic import ValidationError
from training_case import make_experiment
from transformers.activations import ACT2FN

from curtail_pipeline.corpus.tokenizer import save_tokenizer, train_bpe
from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.model_shape import Activation
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training.loss import head_loss, head_of, token_losses
from curtail_pipeline.training.presets import (
    build_model,
    init_checkpoint,
    initialise,
    model_config,
    parameter_count,
    real_vocabulary,
)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_bpe(["wind and sun and wind"] * 3, 512, "<|bos|>"), folder, "<|bos|>")
    return folder


def test_d20_is_the_size_of_the_paper():
    config = model_config(TrainingSettings(preset="d20"), 65_536)
    assert parameter_count(config) == 560_988_160
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (1280, 20, 10)
    assert config.intermediate_size == 5120


def test_a_vocabulary_that_is_too_small():
    with pytest.raises(TrainingError, match="vocab_size 100 cannot hold the 512 ids"):
        model_config(TrainingSettings(model_overrides={"vocab_size": 100}), 512)


def test_activations_that_may_be_set_are_there_and_have_no_parameters():
    for name in get_args(Activation):
        assert not list(ACT2FN[name].parameters())


def test_initial_weights_depend_on_the_seed_alone(tmp_path, tokenizer_folder):
    settings = make_experiment().training
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.manual_seed(torch.initial_seed() + 1)
        init_checkpoint(settings, tokenizer_folder, tmp_path / name, seed)
    hashes = [file_sha256(tmp_path / name / "model.safetensors") for name in "abc"]
    assert hashes[0] == hashes[1] != hashes[2]


def test_hugging_face_loads_it_and_generates(tmp_path, tokenizer_folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    names = init_checkpoint(make_experiment().training, tokenizer_folder, tmp_path, 1)
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= set(names)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(model).__name__ == "NanoChatForCausalLM"
    prompt = tokenizer("wind and", return_tensors="pt")
    assert prompt["input_ids"][0, 0] == tokenizer.bos_token_id == model.config.bos_token_id
    generated = model.generate(
        input_ids=prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=4, min_new_tokens=4
    )
    assert generated.shape[1] == prompt["input_ids"].shape[1] + 4
    assert tokenizer.decode(generated[0])
    loss = model(input_ids=prompt["input_ids"], labels=prompt["input_ids"]).loss.item()
    assert loss == pytest.approx(math.log(model.config.vocab_size), abs=1e-5)


def test_what_writes_to_the_residual_stream_starts_at_zero():
    config = model_config(make_experiment().training, 512)
    model = build_model(config)
    initialise(model, 0)
    zero = {name for name, p in model.named_parameters() if not p.any()}
    layers = range(config.num_hidden_layers)
    writes = {f"model.layers.{i}.{part}.weight" for i in layers for part in ("self_attn.o_proj", "mlp.fc2")}
    assert zero == {"lm_head.weight", *writes}
    fc1 = model.get_parameter("model.layers.0.mlp.fc1.weight")
    assert fc1.std().item() == pytest.approx(32**-0.5, rel=0.1)


def test_a_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(TrainingError, match="has no tokenizer"):
        init_checkpoint(make_experiment().training, tmp_path, tmp_path / "out", 1)


def test_what_a_code_location_imports_is_light():
    modules = [
        *(f"curtail_pipeline.training.{m}" for m in ("heldout_loss", "presets", "retention", "schedule", "serve")),
        "curtail_pipeline.federation.orders",
        "curtail_pipeline.settings.experiment",
    ]
    code = (
        f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'transformers', 'flwr') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("preset", "width", "heads"), [("d4", 256, 2), ("d8", 512, 4), ("d12", 768, 6), ("d20", 1280, 10)]
)
def test_one_dial(preset, width, heads):
    config = model_config(TrainingSettings(preset=preset), 65_536)
    assert (config.hidden_size, config.num_attention_heads, config.intermediate_size) == (width, heads, 4 * width)
    assert config.num_hidden_layers == int(preset[1:])


@pytest.mark.parametrize("preset", ["d0", "d5", "d", "huge", "12"])
def test_a_preset_that_is_none(preset):
    with pytest.raises(ValidationError, match="use tiny, or an even depth"):
        TrainingSettings(preset=preset)


def test_rows_beyond_the_real_ids_never_count(tmp_path, tokenizer_folder):
    """A vocabulary of 500 ids in 512 rows gives the loss of one of 500 rows, to the bit, and trains no padding."""
    settings = make_experiment().training
    config = model_config(settings, 500)
    assert (config.vocab_size, real_vocabulary(config)) == (512, 500)
    model = build_model(config)
    initialise(model, 0)
    tokens = torch.randint(500, (2, 9), generator=torch.Generator().manual_seed(0))
    assert token_losses(model, tokens).mean().item() == pytest.approx(math.log(500), abs=1e-5)
    with torch.no_grad():
        model.lm_head.weight[500:] = 7.0
        model.lm_head.weight[:500] = torch.randn(500, config.hidden_size, generator=torch.Generator().manual_seed(1))
    weight, cap = head_of(model)
    assert weight.shape[0] == 500
    hidden = model.model(input_ids=tokens[:, :-1]).last_hidden_state.flatten(0, 1)
    loss = head_loss(hidden, weight, tokens[:, 1:].flatten(), cap)
    loss.backward()
    assert loss.item() == pytest.approx(token_losses(model, tokens).sum().item(), rel=1e-5)
    assert not model.lm_head.weight.grad[500:].any() and model.lm_head.weight.grad[:500].any()


def test_padding_is_never_generated(tmp_path):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "tokenizer"
    save_tokenizer(train_bpe(["wind and sun and wind"] * 3, 600, "<|bos|>"), folder, "<|bos|>")
    real = max(json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"].values()) + 1
    init_checkpoint(make_experiment().training, folder, tmp_path / "model", 1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.vocab_size % 64 == 0 and real_vocabulary(model.config) >= real
    suppressed = model.generation_config.suppress_tokens or []
    assert suppressed == list(range(real_vocabulary(model.config), model.config.vocab_size))
