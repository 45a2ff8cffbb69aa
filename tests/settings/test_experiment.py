"""Experiment files: every mistake is named with its fix."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.federation.segment_state import DELTA, INNER, OUTER, WEIGHTS
from curtail_pipeline.settings.experiment import EXPERIMENTS, load_experiment, parse_experiment, with_traces


def laptop() -> dict:
    return yaml.safe_load((EXPERIMENTS / "laptop.yaml").read_text())


@pytest.mark.parametrize("name", [path.stem for path in EXPERIMENTS.glob("*.yaml")])
def test_every_experiment_of_the_repository_is_valid(name: str) -> None:
    assert load_experiment(name).name == name


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"polcy": {}}, ["unknown key 'polcy': did you mean 'policy'?"]),
        ({"job": {"steps": "many"}}, ["job.steps", "'many'"]),
        ({"job": {}}, ["missing key 'job.steps'"]),
        ({"sites": []}, ["sites"]),
        ({"clock": {"start": "next tuesday"}}, ["clock.start", "next tuesday"]),
        ({"training": {"sequence_length": 256, "total_batch_tokens": 1000}}, ["1000", "256"]),
        ({"traces": {"provider": "oracle"}}, ["traces", "oracle"]),
        ({"federation": {"linked": ["PARIS"]}}, ["federation.linked", "'PARIS'", "there are "]),
        ({"rounds": {"overlap": True}}, ["rounds: overlap takes updates", "upload_codec is fp32; set it to bf16"]),
        (
            {"rounds": {"overlap": True, "upload_codec": "int8", "sync": "paying"}},
            ["rounds: sync paying weighs the waiting for links, which overlap takes away; set it to all"],
        ),
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


def test_another_trace_is_read_as_all_files_of_the_experiment_are(tmp_path: Path) -> None:
    content = laptop()

    def read(*formats: dict, **given: object) -> dict:
        files = [{"provider": "file", "path": f"{i}.csv", **form} for i, form in enumerate(formats)]
        content["traces"] = {"provider": "combined", "sources": files}
        found = with_traces(parse_experiment(content, "laptop"), tmp_path / "t.csv", given).traces
        return found.model_dump(exclude_unset=True, exclude={"provider", "path"})

    pounds, price = {"unit": "lb/MWh", "timezone": "+10:00"}, {"kind": "price", "timezone": "+10:00"}
    assert read(pounds, pounds) == pounds
    with pytest.raises(SettingsError, match=r"reads its 2 files with different unit, kind; say how .* --set unit="):
        read(pounds, price)
    assert read(pounds, price, kind="price") == price


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


def test_no_fragment_is_without_a_layer() -> None:
    rounds = {"upload_codec": "bf16", "fragments": 5}
    with pytest.raises(SettingsError, match=r"fragments 5 .* the model has 4 parts, its 2 layers, .* set it to 4"):
        parse_experiment(laptop() | {"rounds": rounds}, "x.yaml")
    for change in ({"rounds": rounds | {"fragments": 4}}, {"rounds": rounds, "training": {"preset": "d4"}}):
        assert parse_experiment(laptop() | change, "x.yaml").rounds.fragments >= 4


def test_idle_power_above_training_power_is_refused() -> None:
    content = laptop()
    content["sites"][0] |= {"idle_kw": 5}
    with pytest.raises(SettingsError, match=r"CAISO_NORTH.*idle_kw 5"):
        parse_experiment(content, "x.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(bytes(range(128, 256)))
    with pytest.raises(SettingsError, match="is no UTF-8 text"):
        load_experiment(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"training_kw": 2000}, r"training_kw 2000 for 1 device.*10 kW; give kW, not W, or raise devices"),
        ({"training_kw": 90, "devices": 8}, r"training_kw 90 for 8 device"),
        ({"start_up_kw": 468}, r"start_up_kw 468"),
        ({"pue": 12}, r"pue 12.*above 4; give facility power over IT power"),
        (
            {"battery": {"capacity_kwh": 4000, "charge_kw": 4000, "discharge_kw": 4}},
            r"its battery has charge_kw 4000; give kW and kWh, not W and Wh",
        ),
        ({"training_kw": 0.3, "idle_kw": 0.468}, r"idle_kw 0\.468 above training_kw 0\.3; swap"),
    ],
)
def test_power_that_no_site_has_is_refused(change: dict, words: str) -> None:
    content = laptop()
    content["sites"][0] |= change
    with pytest.raises(SettingsError, match=f"CAISO_NORTH.*{words}"):
        parse_experiment(content, "laptop")


@pytest.mark.parametrize("file", [WEIGHTS, OUTER, DELTA, INNER])
def test_a_site_whose_updates_would_take_the_place_of_a_rounds_files_is_refused(file: str) -> None:
    content, name = laptop(), file.removesuffix(".safetensors")
    content["sites"][0] |= {"name": name}
    with pytest.raises(SettingsError, match=f"no site can be called '{name}', as a file of every round is; rename it"):
        parse_experiment(content, "laptop")


def test_a_large_site_of_many_devices_is_one() -> None:
    content = laptop()
    content["sites"][0] |= {"training_kw": 2000, "idle_kw": 400, "devices": 1024, "pue": 1.3}
    assert parse_experiment(content, "laptop").sites[0].training_kw == 2000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites.0.training_kw": True}, ["sites.0", "training_kw is true; give a number"]),
        ({"job.steps": False}, ["job", "steps is false; give a number"]),
        ({"seed": True}, ["seed is true; give a number"]),
        ({"rounds": {"round_s": True}}, ["rounds: round_s is true; give a number"]),
        ({"rounds": {"round_s": "10 min"}}, ["rounds.round_s: Input should be a valid number", "(got '10 min')"]),
        (
            {"traces": {"provider": "file", "path": "t.csv", "where": {"FLAG": True}}},
            ["where", "FLAG is true; write it in quotes, as the file has it"],
        ),
        (
            {"traces": {"provider": "file", "path": "t.csv", "columns": {"A": {"regoin": "A"}}}},
            ["missing key 'traces.columns.A.region'", "unknown key 'traces.columns.A.regoin': did you mean 'region'"],
        ),
        ({"sites.0.device": "gpu"}, ["sites.0.device", "cuda", "'gpu'"]),
        ({"sites.0.region": " \u200b "}, ["sites.0.region", "is blank"]),
        ({"rules": {"spp_tx": {"enter": 50}}}, ["'spp_tx'", "there is no site", "SPP_TX"]),
        ({"job.steps": 10**15}, ["job.steps 1000000000000000 would take site", "years"]),
        (
            {"clock": {"start": "2026-01-02T00:00:00Z", "end": "2026-01-01T00:00:00Z"}},
            ["the clock's end 2026-01-01T00:00:00+00:00 is not after its start"],
        ),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(change: dict, words: list[str]) -> None:
    content = laptop()
    for path, value in change.items():
        *parents, last = path.split(".")
        place = content
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place[name]
        place[last] = value
    with pytest.raises(SettingsError) as caught:
        parse_experiment(content, "x.yaml")
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_times_without_an_offset_are_in_utc() -> None:
    clock = {"start": "2026-01-01", "end": "2026-01-02 10:00:00"}
    found = parse_experiment(laptop() | {"clock": clock, "job": {"steps": 400, "deadline": "2026-01-03"}}, "x.yaml")
    assert found.clock.start == datetime(2026, 1, 1, tzinfo=UTC)
    assert found.clock.end == datetime(2026, 1, 2, 10, tzinfo=UTC)
    assert found.job.deadline == datetime(2026, 1, 3, tzinfo=UTC)


def test_an_empty_file_says_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("# nothing yet\n")
    with pytest.raises(SettingsError, match="is empty; an experiment has at least the keys"):
        load_experiment(path)
