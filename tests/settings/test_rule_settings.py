import pytest
from pydantic import ValidationError

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.settings.experiment import load_experiment, parse_experiment
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.rule_settings import RuleSettings, rule_of


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"kind": "average_intensity"}, "average_intensity cannot define a window"),
        ({"enter": 100, "exit": 50}, "would leave before enter 100 holds"),
        ({"kind": "price", "all_of": [{"kind": "marginal_intensity"}]}, "'kind' beside any_of/all_of"),
        ({"all_of": [{"enter": 1}, {"enter": 2}]}, "marginal_intensity is listed twice"),
        ({"any_of": [{}], "all_of": [{}]}, "not both"),
        ({"entry": 100}, "Extra inputs"),
    ],
)
def test_impossible_rules_are_refused(rule, message):
    with pytest.raises(ValidationError, match=message):
        RuleSettings.model_validate(rule)
    with pytest.raises(PolicyError, match="policy 'paper', parameter enter: Input should be a valid number"):
        rule_of(PolicySettings(parameters={"enter": "low"}), "R")


def test_an_experiment_keeps_its_rules_when_written_out_and_read_back():
    experiment = load_experiment("laptop").model_dump(mode="json")
    experiment["rules"] = {"SPP_TX": {"any_of": [{"kind": "price"}, {}], "min_duration_s": 1800}}
    once = parse_experiment(experiment, "test")
    assert parse_experiment(once.model_dump(mode="json"), "test") == once
    assert rule_of(once.policy, "SPP_TX", once.rules).signals[0].exit_at == 5
    assert rule_of(once.policy, "NEM_SA", once.rules).signals[0].delay_s == 600
