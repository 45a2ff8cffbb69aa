"""What a trainer shows of every step."""

import itertools
import json
import socket
import sys
import threading
import urllib.request
from datetime import timedelta

import polars as pl
import pytest
import torch
from training_case import SITE, make_experiment, make_order
from waiting import wait_until

from curtail_pipeline.emissions.meter import Meter
from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.metrics_settings import MetricsSettings
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.tables import trace_key, write_table
from curtail_pipeline.times import day_of, utc_now
from curtail_pipeline.training import metrics, throughput
from curtail_pipeline.training.dashboards import TensorBoard, WeightsAndBiases, reporter_of
from curtail_pipeline.training.metrics import JsonLines, PresentSignal, Prometheus, StepMetrics, StepReporter, shown
from curtail_pipeline.training.presets import model_config, parameter_count
from curtail_pipeline.training.step_progress import StepProgress

TOLD = StepProgress(7, 3, 2.5, 90.0, 100.0, 0.02, None)


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "store")


@pytest.fixture
def order(store):
    store.write_bytes("checkpoints/ckpt-000000/model.safetensors", b"weights")
    return make_order(store)


def write_signal(store, value, kind="marginal_intensity", age=timedelta(0)):
    now = utc_now() - age
    table = pl.DataFrame({"region": [SITE], "time": [now], "value": [value], "kind": [kind]})
    write_table(store, trace_key(day_of(utc_now()).isoformat(), SITE), table)


def reported(store, order, drawing_kw=None, told=TOLD):
    seen, meter = [], Meter("GPU counters")
    meter.drawing_kw = drawing_kw
    site = make_experiment().sites[0].model_copy(update={"pue": 1.5})
    StepReporter(site, meter, PresentSignal(store, SITE), [seen.append])(order, told)
    return seen[0]


def test_what_is_not_measured_is_null(store, order):
    write_signal(store, 400.0)
    found = reported(store, order)
    assert (found.watts, found.gco2_per_h, found.mfu) == (None, None, None)
    assert (found.step, found.loss, found.lr, found.tokens_per_s, found.key) == (7, 2.5, 0.02, 100.0, "ckpt-000001")


def test_power_and_emissions_are_the_meters_at_the_signal_now(store, order):
    assert reported(store, order, 0.6).gco2_per_h is None
    write_signal(store, 400.0)
    found = reported(store, order, 0.6)
    assert (found.watts, found.gco2_per_h) == pytest.approx((900.0, 360.0))
    write_signal(store, 400.0, age=timedelta(hours=1))
    assert reported(store, order, 0.6).gco2_per_h is None, "too old"
    write_signal(store, 30.0, kind="price")
    assert reported(store, order, 0.6).gco2_per_h is None, "no intensity"


def test_the_store_is_asked_once_a_minute(store):
    ticks = iter([0.0, 59.0, 61.0])
    signal = PresentSignal(store, SITE, lambda: next(ticks))
    assert signal.at(utc_now()) is None
    write_signal(store, 400.0)
    assert signal.at(utc_now()) is None
    assert signal.at(utc_now()) == 400.0


def test_a_store_that_is_silent_holds_no_step(store, monkeypatch):
    monkeypatch.setattr(metrics, "LONGEST_S", 0.05)
    answers, asked = threading.Event(), []

    class Silent(FolderStore):
        def exists(self, key):
            asked.append(key)
            return answers.wait(30) and super().exists(key)

    write_signal(store, 400.0)
    ticks = itertools.count(0, 61)
    signal = PresentSignal(Silent(store.root), SITE, lambda: next(ticks))
    assert signal.at(utc_now()) is None and signal.at(utc_now()) is None
    assert len(asked) == 1, "it is not asked again while it is asked"
    answers.set()
    assert wait_until(lambda: signal.at(utc_now()), 10) == 400.0


def test_lines_are_there_at_once_and_a_full_disk_costs_no_training(store, order, tmp_path, caplog):
    found = reported(store, order)
    path = tmp_path / "S.steps.jsonl"
    lines = JsonLines(path)
    lines(found)
    lines(found)
    read = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(read) == 2 and read[0]["loss"] == 2.5 and read[0]["watts"] is None and read[0]["schema"] == 1
    broken = JsonLines(tmp_path / "absent" / "S.steps.jsonl")
    broken(found)
    broken(found)
    assert caplog.text.count("no metrics") == 1


def test_prometheus_reads_the_last_step_and_a_taken_port_is_named(store, order):
    pytest.importorskip("prometheus_client")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    gauges = Prometheus(port)
    try:
        gauges(reported(store, order))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            text = answer.read().decode()
        assert f'curtail_loss{{site="{SITE}"}} 2.5' in text and f'curtail_watts{{site="{SITE}"}} NaN' in text
        with pytest.raises(TrainingError, match=rf"prometheus_port: {port} cannot be opened"):
            Prometheus(port)
    finally:
        gauges.close()


def test_without_the_extra_the_setting_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(TrainingError, match=r"pip install 'curtail_pipeline\[metrics\]'"):
        Prometheus(9400)
    assert "metrics" not in make_experiment().identity()


def test_flops_are_palms_count():
    settings = TrainingSettings(preset="d20", sequence_length=2048)
    config = model_config(settings, 65_536)
    expected = 6 * (560_988_160 - 65_536 * 1280) + 12 * 20 * 1280 * 2048
    assert parameter_count(config) == 560_988_160
    assert throughput.flops_per_token(config, 2048) == expected
    assert throughput.mfu(100_000, expected, 989.4e12) == pytest.approx(100_000 * expected / 989.4e12)


def test_the_peak_of_a_device_that_is_not_known_is_none(monkeypatch):
    assert throughput.peak_flops(torch.device("cpu")) is None and throughput.mfu(1.0, 1, None) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200" if device.index == 1 else "other")
    assert throughput.peak_flops(torch.device("cuda", 1)) == 989.4e12
    assert throughput.peak_flops(torch.device("cuda", 0)) is None


def steps_of(store, order):
    """Two live steps, and one of a replay."""
    found = reported(store, order)
    later = found.model_copy(update={"step": found.step + 1, "loss": 2.25})
    return [found, later, later.model_copy(update={"replay": "r"})]


def test_tensorboard_reads_what_was_written(store, order, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    board = TensorBoard(tmp_path / "S.tensorboard")
    first, *others = steps_of(store, order)
    for each in (first, *others):
        board(each)
    board.close()
    read = accumulator.EventAccumulator(str(tmp_path / "S.tensorboard")).Reload()
    assert [(e.step, e.value) for e in read.Scalars(f"{SITE}/loss")] == [(first.step, 2.5), (first.step + 1, 2.25)]
    assert set(read.Tags()["scalars"]) == {f"{SITE}/{name}" for name in shown(first)}
    assert "mfu" not in shown(first) and "watts" not in shown(first)


@pytest.mark.slow
def test_weights_and_biases_offline_leaves_a_run_to_be_sent(store, order, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    run = WeightsAndBiases("curtailed", SITE, tmp_path / "S.wandb", "offline")
    for each in steps_of(store, order):
        run(each)
    run.close()
    (written,) = (tmp_path / "S.wandb").rglob("run-*.wandb")
    wait_until(
        lambda: b"2.25" in (content := written.read_bytes()) and b"tokens_per_s" in content, what="what was sent"
    )
    assert b"curtailed" in written.read_bytes()


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("torch.utils.tensorboard", lambda folder: TensorBoard(folder)),
        ("wandb", lambda folder: WeightsAndBiases("p", SITE, folder, "offline")),
    ],
)
def test_without_a_dashboards_extra_its_setting_says_what_to_install(monkeypatch, tmp_path, package, make):
    monkeypatch.setitem(sys.modules, package, None)
    name = package.rpartition(".")[2]
    with pytest.raises(TrainingError, match=rf"metrics\.{name} is set .*pip install 'curtail_pipeline\[{name}\]'"):
        make(tmp_path)


def test_the_reporter_shows_what_the_experiment_asks_for(store, tmp_path):
    experiment, meter = make_experiment(), Meter("none")
    endpoint = tmp_path / "S.json"
    plain = reporter_of(store, experiment.sites[0], experiment, meter, endpoint)
    assert [type(sink) for sink in plain._sinks] == [JsonLines]
    pytest.importorskip("tensorboard")
    wanted = experiment.model_copy(update={"metrics": MetricsSettings(tensorboard=True)})
    more = reporter_of(store, experiment.sites[0], wanted, meter, endpoint)
    more.close()
    assert [type(sink) for sink in more._sinks] == [JsonLines, TensorBoard] and (tmp_path / "S.tensorboard").is_dir()


def test_every_gauge_says_what_it_shows():
    described = [StepMetrics.model_fields[name].description for name in Prometheus.NAMES]
    assert all(described), described
