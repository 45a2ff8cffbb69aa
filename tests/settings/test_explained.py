"""What is wrong with an experiment file is said as people who wrote it think of it."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from curtail_pipeline.cli.windows_of_file import windows_of_file
from curtail_pipeline.errors import PolicyError, SettingsError
from curtail_pipeline.scheduling.policies import check_parameters
from curtail_pipeline.settings.experiment import EXPERIMENTS, load_experiment, parse_experiment
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.rule_settings import rule_of
from curtail_pipeline.settings.yaml_text import parse_yaml


def laptop() -> dict:
    return yaml.safe_load((EXPERIMENTS / "laptop.yaml").read_text())


def said(**change: object) -> str:
    with pytest.raises(SettingsError) as caught:
        parse_experiment(laptop() | change, "x.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


SITE = {"name": "A", "region": "A", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.1}
FILE = {"provider": "file", "path": "t.csv"}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"round": {}}, "unknown key 'round': did you mean 'rounds'?"),
        ({"sites": [{**SITE, "steps_per_sec": 1}]}, "unknown key 'sites.0.steps_per_sec': did you mean 'steps_per_s'?"),
        ({"traces": {**FILE, "time_zone": "UTC"}}, "unknown key 'traces.time_zone': did you mean 'timezone'?"),
        ({"threads": 4}, "unknown key 'threads': it belongs in 'sites.threads'"),
        (
            {"policy": {"name": "paper", "enter": 40}},
            "'policy.enter': a policy's own keys stand under policy.parameters",
        ),
        ({"zzz": 1}, "unknown key 'zzz': remove it or correct its spelling (there are accounting, alerts, "),
        ({"rounds": None}, "rounds: is empty; give what belongs in it, or leave it out"),
        ({"sites": None}, "sites: is empty; give what belongs in it, or leave it out"),
        ({"policy": "paper"}, "policy: is a section of keys, each with a value, and not 'paper'"),
        ({"sites": {"A": SITE}}, "sites: is a list, each entry after '- ', and not a section of keys"),
        (
            {"sites": [{**SITE, "region": 1001}]},
            "sites.0.region: is a text, which YAML reads as 1001; write it in quotes",
        ),
        ({"traces": {**FILE, "unit": "GW"}}, "traces.unit: Input should be 'g/kWh'"),
        ({"traces": {"path": "t.csv"}}, "missing key 'traces.provider': add it"),
        (
            {"traces": {**FILE, "provider": "files"}},
            "traces.provider: 'files' is not one of synthetic, file, live_file, ",
        ),
        ({"traces": {**FILE, "provider": "files"}}, "combined: did you mean 'file'?"),
        ({"clock": {"start": "06/03/2024"}}, "clock.start: a time is written like 2026-01-11T17:00:00Z"),
        ({"clock": {"start": 20240603}}, "clock.start: a time is written like 2026-01-11T17:00:00Z"),
        ({"clock": {"start": "1717372800"}}, "(got '1717372800')"),
        ({"job": {"steps": 5000, "deadline": 2024}}, "job.deadline: a time is written like 2026-01-11T17:00:00Z"),
        ({"traces": {"provider": "synthetic", "start": 20240603}}, "traces.start: a time is written like"),
    ],
)
def test_a_mistake_is_said_with_its_fix(change: dict[str, Any], text: str) -> None:
    assert text in said(**change)


@pytest.mark.parametrize("start", ["2024-06-03", "2024-06-03T00:00", "2024-06-03 00:00:00Z", "2024-06-03T02:00+02:00"])
def test_times_are_utc_where_they_say_no_offset(start: str) -> None:
    found = parse_experiment(laptop() | {"traces": {"provider": "synthetic", "start": start}, "clock": {}}, "x.yaml")
    assert found.traces.model_dump(mode="json")["start"] == "2024-06-03T00:00:00Z"


def test_options_of_a_command_are_explained_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown key 'separater': did you mean 'separator'"):
        windows_of_file(tmp_path / "t.csv", separater=";")


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"name: x\n\tseed: 1\n", "write spaces in place of tabs"),
        ("name: x\n".encode("utf-16"), "is no UTF-8 text, by its byte 0xff at 0; save it as UTF-8"),
        ("# Z\xfcrich\n".encode("latin-1"), "is no UTF-8 text, by its byte 0xfc at 3; save it as UTF-8"),
        (b"name: x\nname: y\n", "the key 'name' is there twice; keep one at line 2, column 1"),
    ],
)
def test_a_file_that_is_no_yaml_says_where_and_why(tmp_path: Path, raw: bytes, text: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(raw)
    with pytest.raises(SettingsError) as caught:
        load_experiment(path)
    assert text in str(caught.value) and "\n" not in str(caught.value)


def test_a_policys_parameters_are_named_with_their_value() -> None:
    with pytest.raises(PolicyError, match=r"parameter enter: .* \(got 'forty'\)"):
        rule_of(PolicySettings(name="threshold", parameters={"enter": "forty"}), "A")
    with pytest.raises(PolicyError, match=r"parameter entr: .*did you mean 'enter'\?"):
        check_parameters(PolicySettings(name="threshold", parameters={"entr": 40}))


def test_a_decimal_comma_is_explained() -> None:
    content = laptop()
    content["sites"][0] |= {"training_kw": "2,5"}
    with pytest.raises(SettingsError, match=r"sites.0.training_kw: .* \(got '2,5'; write 2\.5\)"):
        parse_experiment(content, "laptop")
    content["sites"][0] |= parse_yaml("{training_kw: 2,5, pue: 1.2}")
    with pytest.raises(
        SettingsError, match=r"sites.0.5: a key is a name; if its comma is a decimal one, write a point"
    ):
        parse_experiment(content, "laptop")
