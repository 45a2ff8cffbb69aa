"""The training benchmark: what it says on a CPU, and under which names."""

import pytest

from curtail_pipeline.benchmarks import bench_train, bench_training


@pytest.mark.slow
def test_a_cpu_has_speed_and_shares_and_nothing_that_only_a_gpu_can_tell():
    found = bench_train.run(
        vocab_size=512, sequence_length=16, total_batch_tokens=64, device_batch_sequences=2, steps=3, rounds=2
    )
    assert found["mfu"] is None and found["peak_mib"] is None
    assert found["tokens_per_s"] == pytest.approx(64 / found["step_s"], rel=0.05)
    assert 0 < found["non_training_share"] < 1
    times = found["step_times"]
    assert sum(times["steps"]) == 2 and len(times["edges_s"]) == len(times["steps"]) + 1
    assert times["edges_s"] == sorted(times["edges_s"])
    assert found["device_name"] and found["estimated_mib"] >= 16 * found["parameters"] // 2**21
    assert bench_training.run is bench_train.run
