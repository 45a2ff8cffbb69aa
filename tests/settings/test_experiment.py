"""Experiment files: every mistake is named with its fix."""

from pathlib import Path

import pytest
import yaml

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.experiment import EXPERIMENTS, load_experiment, parse_experiment, with_traces


def laptop() -> dict:
    return yaml.safe_load((EXPERIMENTS / "laptop.yaml").read_text())


@pytest.mark.parametrize("name", [path.stem for path in EXPERIMENTS.glob("*.yaml")])
def test_every_experiment_of_the_repository_is_valid(name: str) -> None:
    assert load_experiment(name).name == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"polcy": {}}, ["polcy", "remove it or correct its spelling"]),
        ({"job": {"steps": "many"}}, ["job.steps", "'many'"]),
        ({"job": {}}, ["missing key 'job.steps'"]),
        ({"sites": []}, ["sites"]),
        ({"clock": {"start": "next tuesday"}}, ["clock.start", "next tuesday"]),
        ({"training": {"sequence_length": 256, "total_batch_tokens": 1000}}, ["1000", "256"]),
        ({"traces": {"provider": "oracle"}}, ["traces", "oracle"]),
        ({"federation": {"linked": ["PARIS"]}}, ["federation.linked", "'PARIS'", "there are "]),
    ],
)
def test_a_mistake_is_named(change: dict, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_experiment(laptop() | change, "x.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in ["x.yaml", *words])


def test_a_site_declared_twice_is_refused() -> None:
    content = laptop()
    content["sites"].append(content["sites"][0])
    with pytest.raises(SettingsError, match=r"CAISO_NORTH.*twice"):
        parse_experiment(content, "x.yaml")


def test_unknown_names_list_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="laptop"):
        load_experiment("lapdog")
    with pytest.raises(SettingsError, match="SPP_TX"):
        load_experiment("laptop").site("SPP")
    broken = tmp_path / "x.yaml"
    broken.write_text("name: [")
    with pytest.raises(SettingsError, match="not valid YAML"):
        load_experiment(broken)


def test_another_trace_is_another_experiment_with_its_own_name(tmp_path: Path) -> None:
    before = load_experiment("laptop")
    after = with_traces(before, tmp_path / "mci.csv")
    assert after.name == "laptop-mci"
    assert after.sha256() != before.sha256()


def test_what_cannot_change_a_result_is_not_part_of_the_identity() -> None:
    before = laptop()
    after = parse_experiment(before | {"replay": {"speed": 7}, "federation": {"liveness_s": 99}}, "x.yaml")
    assert after.sha256() == parse_experiment(before, "x.yaml").sha256()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": ".."}, ["name", ".."]),
        ({"seed": -1}, ["seed", "-1"]),
        ({"rounds": {"round_s": float("inf")}}, ["rounds.round_s", "finite"]),
    ],
)
def test_values_that_cannot_work_are_refused(change: dict, words: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_experiment(laptop() | change, "x.yaml")
    assert all(word in str(caught.value) for word in words)


def test_idle_power_above_training_power_is_refused() -> None:
    content = laptop()
    content["sites"][0] |= {"idle_kw": 5}
    with pytest.raises(SettingsError, match=r"CAISO_NORTH.*idle_kw 5"):
        parse_experiment(content, "x.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(SettingsError, match="not valid YAML"):
        load_experiment(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training_kw": 2000}, r"training_kw 2000 for 1 device.*10 kW; give kW, not W, or raise devices"),
        ({"training_kw": 90, "devices": 8}, r"training_kw 90 for 8 device"),
        ({"start_up_kw": 468}, r"start_up_kw 468"),
        ({"pue": 12}, r"pue 12.*above 4; give facility power over IT power"),
        ({"training_kw": 0.3, "idle_kw": 0.468}, r"idle_kw 0\.468 above training_kw 0\.3; swap"),
    ],
)
def test_power_that_no_site_has_is_refused(change: dict, words: str) -> None:
    content = laptop()
    content["sites"][0] |= change
    with pytest.raises(SettingsError, match=f"CAISO_NORTH.*{words}"):
        parse_experiment(content, "laptop")


def test_a_large_site_of_many_devices_is_one() -> None:
    content = laptop()
    content["sites"][0] |= {"training_kw": 2000, "idle_kw": 400, "devices": 1024, "pue": 1.3}
    assert parse_experiment(content, "laptop").sites[0].training_kw == 2000
