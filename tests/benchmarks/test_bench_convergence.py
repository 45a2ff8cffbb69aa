"""`bench convergence`: its arms, what is kept, and what is said of it."""

from pathlib import Path

import pytest

from curtail_pipeline.benchmarks.bench_convergence import arms, run
from curtail_pipeline.benchmarks.bench_quality import task_of
from curtail_pipeline.benchmarks.convergence_run import result_of
from curtail_pipeline.benchmarks.quality_arms import Curve, Task
from curtail_pipeline.benchmarks.quality_run import experiment_of
from curtail_pipeline.errors import SettingsError

NOWHERE = Path("nowhere")


def keep(task: Task, folder: Path, loss: float) -> None:
    curve = Curve(arm=task.arm.name, seed=task.seed, steps=(8,), losses=(loss,), members=(1,), parameters=5)
    result_of(task, folder).write_text(curve.model_dump_json())


def test_outcomes_that_are_kept_are_not_trained_again(tmp_path: Path) -> None:
    for number, arm in enumerate(arms("sites3")):
        for seed in (1, 2):
            keep(task_of(arm, seed, 48, "tiny", NOWHERE), tmp_path, 4.0 + 0.04 * number)
    found = run(membership="sites3", steps=48, seeds=2, results=str(tmp_path))
    names = list(found["arms"])
    assert names[:4] == ["fp32", "bf16", "int8", "int4"] and {"delayed bf16", "states int8"} < set(names)
    assert found["arms"]["bf16"]["loss"] == [4.04, 4.04] and found["seeds"] == 2
    assert found["relative_to_fp32"]["fp32"] == 0 and found["relative_to_fp32"]["int8"] == 0.02
    part = run(membership="sites3", steps=48, seeds=1, only="delayed int2", results=str(tmp_path))
    assert part["arms"].keys() == {"fp32", "delayed int2"}
    with pytest.raises(SettingsError, match="no arm 'int3'; there are fp32; bf16"):
        run(membership="sites3", only="int3")


def test_segments_are_longer_than_a_round_and_settings_reach_the_arm() -> None:
    known = {arm.name: arm for arm in arms("sites3")}
    task = task_of(known["delayed int2"], 1, 384, "tiny", NOWHERE)
    assert [len(stretch.rounds) for stretch in task.stretches] == [12, 4]
    rounds = experiment_of(task).rounds
    assert (rounds.upload_codec, rounds.state_codec, rounds.max_rounds, rounds.overlap) == ("int2", "auto", 12, True)
    assert experiment_of(task_of(known["states int4"], 1, 48, "tiny", NOWHERE)).rounds.state_codec == "int4"
