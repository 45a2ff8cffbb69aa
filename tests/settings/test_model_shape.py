"""Models and steps that cannot be are refused when the experiment is read."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from micro import EXPERIMENT, curtail_here

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.experiment import parse_experiment

REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"hiden_size": 64}, "unknown key 'training.model_overrides.hiden_size': did you mean 'hidden_size'?"),
    ({"tie_word_embeddings": True}, "unknown key 'training.model_overrides.tie_word_embeddings'"),
    ({"hidden_size": 100, "num_attention_heads": 4}, "hidden_size 100 over num_attention_heads 4"),
    ({"hidden_size": "wide"}, "hidden_size: Input should be a valid integer"),
    ({"hidden_size": 64.5}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: Input should be greater than or equal to 1"),
    ({"hidden_act": "nope"}, "hidden_act: Input should be 'relu2'"),
    ({"final_logit_softcapping": 0}, "final_logit_softcapping: Input should be greater than 0"),
    ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps"),
    ({"max_position_embeddings": 32}, "max_position_embeddings 32 is below sequence_length 64"),
]


def with_training(**training: Any) -> dict[str, Any]:
    traces = {"provider": "file", "path": "trace.csv"}
    return {**EXPERIMENT, "traces": traces, "training": {**EXPERIMENT["training"], **training}}


@pytest.mark.parametrize(("overrides", "said"), REFUSED)
def test_a_model_that_cannot_be(overrides: dict[str, Any], said: str) -> None:
    shape = {**EXPERIMENT["training"]["model_overrides"], "num_key_value_heads": 1, **overrides}
    with pytest.raises(SettingsError) as refused:
        parse_experiment(with_training(model_overrides=shape), "my.yaml")
    assert said in str(refused.value) and str(refused.value).startswith("my.yaml: ")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"total_batch_tokens": 500}, "total_batch_tokens 500 is not a multiple of sequence_length 64"),
        ({"device_batch_sequences": 3}, "device_batch_sequences 3 does not divide the 8 sequences of a step"),
        ({"warmup_steps": 400}, "warmup_steps 400 is not below the job's 400 steps"),
    ],
)
def test_a_step_that_cannot_be(training: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        parse_experiment(with_training(**training), "my.yaml")


def test_a_device_that_holds_more_than_a_step_is_no_fault() -> None:
    assert parse_experiment(with_training(device_batch_sequences=64), "my.yaml").sequences_per_step == 8


def test_the_command_line_says_it_before_anything_is_made(tmp_path: Path) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(yaml.safe_dump(with_training(model_overrides={"hidden_act": "nope"})))
    done = curtail_here("run", "--experiment", str(path), home=tmp_path / "home")
    assert done.returncode == 1 and "hidden_act" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "home").exists()
