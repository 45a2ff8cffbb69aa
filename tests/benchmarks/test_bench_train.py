"""The training benchmark: what it says on a CPU, and under which names."""

import math
import os
import time

import pytest

from curtail_pipeline.benchmarks import bench_train, bench_training, train_rounds
from curtail_pipeline.benchmarks.train_references import ReferenceTask, hand_written
from curtail_pipeline.errors import SettingsError, TrainingError
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training import trainer

SMALL = {"vocab_size": 512, "sequence_length": 16, "total_batch_tokens": 64, "device_batch_sequences": 2}
NANOCHAT = "CURTAIL_NANOCHAT"
"""The environment's name of a checkout of nanochat as of October 2025."""


@pytest.mark.slow
def test_a_cpu_has_speed_and_shares_and_nothing_that_only_a_gpu_can_tell():
    found = bench_train.run(**SMALL, steps=3, rounds=2)
    assert found["mfu"] is None and found["peak_mib"] is None
    assert found["tokens_per_s"] == pytest.approx(64 / found["step_s"], rel=0.05)
    assert 0 < found["non_training_share"] < 1 and found["fetch_s"] > 0 and found["store_s"] > 0
    assert found["snapshot_s"] is None and found["snapshot_share"] is None
    times = found["step_times"]
    assert sum(times["steps"]) == 2 and len(times["edges_s"]) == len(times["steps"]) + 1
    assert times["edges_s"] == sorted(times["edges_s"])
    assert found["device_name"] and found["estimated_mib"] >= 16 * found["parameters"] // 2**21
    assert bench_training.run is bench_train.run


@pytest.mark.long
def test_snapshots_of_a_round_under_way_are_timed_among_its_steps(capsys, monkeypatch):
    step = trainer.SiteTrainer._step
    # so long that a busy machine writes a snapshot meanwhile
    monkeypatch.setattr(trainer.SiteTrainer, "_step", lambda *given: (time.sleep(0.05), step(*given))[1])
    found = bench_train.run(**SMALL, steps=20, rounds=2, snapshots=True)
    assert "snapshots were written" not in capsys.readouterr().err
    assert found["snapshot_s"] < 5 and found["slowest_snapshot_s"] < 5
    assert found["snapshot_share"] == pytest.approx(found["snapshot_s"] / 600, rel=0.02, abs=1e-5)


@pytest.mark.long
def test_several_devices_share_a_step():
    found = bench_train.run(**SMALL, preset="d2", steps=2, rounds=2, devices=2, parallel="fsdp")
    assert found["devices"] == 2 and found["tokens_per_s"] == pytest.approx(64 / found["step_s"], rel=0.05)
    with pytest.raises(TrainingError, match="devices 3 of S do not divide the 4 sequences of a step"):
        bench_train.run(**SMALL, preset="d2", devices=3)


def test_the_hand_written_loop_trains_the_same_model():
    training = TrainingSettings(sequence_length=16, total_batch_tokens=64, device_batch_sequences=2)
    step = hand_written(
        ReferenceTask(
            kind="hand_written", checkout=None, training=training, vocab_size=512, device="cpu", threads=1, steps=1
        )
    )
    losses = [step().item() for _ in range(6)]
    assert losses[0] == pytest.approx(math.log(512), abs=0.01), "as it is initialised"
    assert losses[-1] < losses[0] - 0.1, "it is the same batch each time"


@pytest.mark.slow
@pytest.mark.skipif(NANOCHAT not in os.environ, reason=f"{NANOCHAT} names no checkout of nanochat")
def test_a_loop_without_the_trainer_and_nanochats_own_are_timed_beside_it():
    checkout = os.environ[NANOCHAT]
    found = bench_train.run(**SMALL, preset="d2", steps=3, rounds=2, hand_written=True, nanochat=checkout)
    for name in ("hand_written", "nanochat"):
        assert found[name]["tokens_per_s"] == pytest.approx(64 / found[name]["step_s"], rel=0.05)
        assert found[f"over_{name}"] == pytest.approx(found["tokens_per_s"] / found[name]["tokens_per_s"], rel=0.01)


def test_a_folder_that_is_no_checkout_and_a_preset_without_depth_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="is no checkout of nanochat"):
        bench_train.run(**SMALL, preset="d2", nanochat=str(tmp_path))
    (tmp_path / "nanochat").mkdir()
    (tmp_path / "nanochat/gpt.py").touch()
    with pytest.raises(SettingsError, match="--preset tiny has none; use one such as d4"):
        bench_train.run(**SMALL, nanochat=str(tmp_path))


def test_weights_and_state_are_read_anew_in_every_round_that_is_timed(tmp_path, monkeypatch):
    read, rounds = [], []

    def count(name):
        real = getattr(trainer, name)

        def counted(*given):
            read.append((len(rounds), name))
            return real(*given)

        monkeypatch.setattr(trainer, name, counted)

    count("read_tensors")
    count("load_begin")
    told = train_rounds._Timed.round
    monkeypatch.setattr(train_rounds._Timed, "round", lambda *given: (told(*given), rounds.append(given))[0])
    settings = {"preset": "tiny", "sequence_length": 16, "total_batch_tokens": 64, "device_batch_sequences": 2}
    experiment = bench_train._experiment({**settings, "model_overrides": {"vocab_size": 512}}, "cpu", 1)
    found = train_rounds.time_rounds(tmp_path, experiment, 512, steps=2, rounds=3, snapshots=False)
    timed = [name for number, name in read if number >= len(rounds) - 2]
    assert sorted(timed) == ["load_begin", "load_begin", "read_tensors", "read_tensors"]
    assert len(found.fetch_s) == len(found.step_s) == 2


@pytest.mark.parametrize("snapshots", [False, True])
def test_too_few_steps_or_rounds_to_time_are_refused_before_any_work(snapshots):
    for few, text in (({"steps": 1}, "--steps 1 leaves no time"), ({"rounds": 1}, "--rounds 1 leaves none behind")):
        with pytest.raises(SettingsError, match=f"{text}.*give 2 or more"):
            bench_train.run(**SMALL, **few, snapshots=snapshots)
