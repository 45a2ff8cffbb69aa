"""Provisioners are read from an experiment, and what cannot be is refused in one line."""

from typing import Any

import pytest
from simulation_cases import experiment

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.provisioner_settings import CommandProvisioner

SITE = {"name": "A", "region": "A", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5}
SKY = {"kind": "command", "start": "sky launch -y -c {site} site.yaml", "stop": "sky down -y {site}"}


def with_provisioner(settings: Any) -> Experiment:
    return experiment("A", sites=[{**SITE, "provisioner": settings}])


def test_each_kind_is_read_and_is_no_part_of_the_identity() -> None:
    plain = experiment("A", sites=[SITE])
    assert plain.sites[0].provisioner.kind == "none"
    for settings in (SKY, {"kind": "subprocess"}, {"kind": "kubernetes", "stateful_set": "fresno"}, {"kind": "none"}):
        found = with_provisioner(settings)
        assert found.sites[0].provisioner.kind == settings["kind"] and found.sha256() == plain.sha256()
    command = with_provisioner(SKY).sites[0].provisioner
    assert isinstance(command, CommandProvisioner) and command.stop == "sky down -y {site}"


def test_a_modelled_start_up_is_left_out_where_a_real_one_is_waited_for() -> None:
    found = with_provisioner(SKY).model_copy()
    loud = experiment("A", sites=[{**SITE, "provisioner": SKY}], overheads={"provisioning_s": 240, "connect_s": 10})
    (site,) = loud.started_really().sites
    assert site.overheads is not None and (site.overheads.provisioning_s, site.overheads.connect_s) == (0, 0)
    plain = experiment("A", overheads={"provisioning_s": 240})
    assert plain.started_really() == plain and found.sites[0].overheads is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "skypilot"}, "'skypilot' is not one of none, subprocess, kubernetes, command"),
        ({"kind": "kubernetes"}, "missing key 'sites.0.provisioner.kubernetes.stateful_set'"),
        ({"kind": "kubernetes", "stateful_set": "Fresno_1"}, "stateful_set: String should match pattern"),
        ({**SKY, "start": "sky launch '{site}"}, "start: is no command line: No closing quotation"),
        ({**SKY, "start": "sky launch {name}"}, r"start: has the placeholder \{name\}; there is \{site\} alone"),
        ({**SKY, "start": "sky {"}, "is no command line"),
        ({**SKY, "stop": " "}, "stop: is empty; give a command line"),
        ({**SKY, "timeout_s": 0}, "timeout_s: Input should be greater than 0"),
        ({**SKY, "stopp": "x"}, "unknown key 'sites.0.provisioner.command.stopp'"),
        ({"kind": "subprocess", "superlink": "http://a:1"}, "superlink: String should match pattern"),
        ("none", "provisioner"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(settings: Any, said: str) -> None:
    with pytest.raises(SettingsError, match=said) as refused:
        with_provisioner(settings)
    assert "\n" not in str(refused.value)
