"""`product` overheads: what was measured, by the job's model, and what is assumed beyond it."""

import pytest

from curtail_pipeline.settings import overheads
from curtail_pipeline.settings.experiment import load_experiment, with_overheads
from curtail_pipeline.settings.model_size import parameters_of
from curtail_pipeline.settings.overheads import D20_PARAMETERS, Overheads, measurement, product
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training.presets import model_config, parameter_count


@pytest.mark.parametrize(
    ("preset", "overrides"),
    [
        ("tiny", {}),
        ("d4", {}),
        ("d12", {"vocab_size": 70_001}),
        ("d20", {}),
        ("d8", {"num_key_value_heads": 2, "intermediate_size": 900}),
    ],
)
def test_a_models_size_follows_from_its_settings(preset: str, overrides: dict[str, int]) -> None:
    training = TrainingSettings(preset=preset, model_overrides=overrides)
    assert parameters_of(training, 65_536) == parameter_count(model_config(training, 65_536))


def test_the_file_is_one_run_of_the_benchmark() -> None:
    found = measurement()
    assert found.command.startswith("curtail bench overheads --models ")
    assert [f"{model.preset}" for model in found.models] == found.command.split()[4].split(",")
    sizes = [model.parameters for model in found.models]
    assert sizes == sorted(sizes)
    for model in found.models:
        expected = parameters_of(TrainingSettings(preset=model.preset), 65_536)
        assert model.parameters == expected
        assert model.weights_mib == pytest.approx(4 * expected / 2**20, rel=0.01)


def test_a_job_gets_the_smallest_measured_model_that_is_no_smaller() -> None:
    small, large = measurement().models[0], measurement().models[-1]
    assert product(600.0, 1) == product(600.0, small.parameters)
    assert product(600.0, 1).round_load_s == small.load_s
    assert product(600.0, small.parameters + 1) != product(600.0, small.parameters)
    assert product(600.0, large.parameters) == Overheads(
        connect_s=min(model.join_s for model in measurement().models),
        first_load_s=large.first_load_s,
        round_load_s=large.load_s,
        round_tail_s=large.tail_s,
        round_tail_single_s=large.tail_single_s,
        outer_step_s=large.merge_s,
    )


def test_a_larger_job_gets_the_assumption() -> None:
    """2 % of a round and 20 s to join, as before anything was measured."""
    assert measurement().model_for(D20_PARAMETERS) is None
    assumed = Overheads(connect_s=20, round_load_s=6, round_tail_s=3, round_tail_single_s=3, outer_step_s=3)
    assert product(600.0) == product(600.0, D20_PARAMETERS) == assumed
    paper = with_overheads(load_experiment("paper"), "product")
    assert paper.overheads == assumed
    assert with_overheads(load_experiment("laptop"), "product").overheads == product(2_700.0, 1)


def test_what_is_measured_is_read_from_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    larger = measurement().models[-1].model_copy(update={"parameters": D20_PARAMETERS, "join_s": 7.0})
    changed = measurement().model_copy(update={"models": (larger,)})
    monkeypatch.setattr(overheads, "measurement", lambda: changed)
    assert product(600.0).connect_s == 7.0
