"""`bench convergence`: its arms, what is kept, what is said of it; and that delayed rounds are what they say."""

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from training_case import CONFIG, SITE, WEIGHTS, fill_store, make_experiment

from curtail_pipeline.benchmarks.bench_convergence import arms, run
from curtail_pipeline.benchmarks.bench_quality import task_of
from curtail_pipeline.benchmarks.convergence_run import result_of
from curtail_pipeline.benchmarks.delayed_rounds import run_delayed
from curtail_pipeline.benchmarks.quality_arms import Curve, Task
from curtail_pipeline.benchmarks.quality_run import experiment_of
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.federation.orders import Plan, Segment
from curtail_pipeline.federation.rounds import run_segment
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256
from curtail_pipeline.training.plan_runner import TrainersHere
from curtail_pipeline.training.trainer import SiteTrainer

NOWHERE = Path("nowhere")


def keep(task: Task, folder: Path, loss: float) -> None:
    curve = Curve(arm=task.arm.name, seed=task.seed, steps=(8,), losses=(loss,), parameters=5)
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
    assert (rounds.upload_codec, rounds.state_codec, rounds.max_rounds) == ("int2", "fp32", 12)
    assert experiment_of(task_of(known["states int4"], 1, 48, "tiny", NOWHERE)).rounds.state_codec == "int4"


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> FolderStore:
    return fill_store(tmp_path_factory.mktemp("filled"), make_experiment())


def plan_of(store: FolderStore, mode: str, codec: str = "int8") -> Plan:
    content = {
        "schema": 1, "key": "ckpt-000001", "members": [SITE], "mode": mode, "first_step": 0, "total_steps": 9,
        "parent": {"key": "ckpt-000000", "weights": WEIGHTS, "sha256": file_sha256(store.path(WEIGHTS)),
                   "config": CONFIG},
        "rounds": [{"index": n, "steps": {SITE: 2}, "lease": {SITE: [[1, 8 * n, 8 * n + 8]]}} for n in range(3)],
        "outer": {"lr": 0.5 if mode == "federated" else 1, "momentum": 0}, "norm_bound": 5.0,
        "exchange": {"upload": codec}, "shared": {"name": "fresh"},
    }  # fmt: skip
    return Plan.read(content, "the plan")


def delayed(store: FolderStore, plan: Plan) -> Segment:
    return run_delayed({SITE: SiteTrainer(store, SITE, make_experiment())}, plan, store)


def test_one_site_has_nothing_to_wait_for(filled: FolderStore, tmp_path: Path) -> None:
    """Delayed or not, it goes on from what it has trained."""
    shutil.copytree(filled.root, tmp_path / "a")
    shutil.copytree(filled.root, tmp_path / "b")
    one, two = FolderStore(tmp_path / "a"), FolderStore(tmp_path / "b")
    transport = TrainersHere(lambda site: SiteTrainer(one, site, make_experiment()), threading.Event())
    waited = run_segment(transport, plan_of(one, "local"), one, wait=lambda _: None, log=lambda _: None)
    ahead = delayed(two, plan_of(two, "local"))
    assert ahead.weights.sha256 == waited.weights.sha256 and ahead.sites == waited.sites
    assert ahead.shared.name == waited.shared.name


def test_a_round_begins_with_the_merge_of_the_last_but_one_and_its_own_work(
    filled: FolderStore, tmp_path: Path
) -> None:
    """With an outer learning rate of a half: twice as far ahead as what is merged."""
    shutil.copytree(filled.root, tmp_path / "store")
    store = FolderStore(tmp_path / "store")
    segment = delayed(store, plan_of(store, "federated"))
    folder = "scratch/ckpt-000001/1"
    merged = [load_file(store.path(f"{folder}/merged/{n}/model.safetensors")) for n in range(3)]
    begun = [load_file(store.path(f"{folder}/start/{n}/{SITE}.safetensors")) for n in (1, 2)]
    before = load_file(store.path(WEIGHTS))
    for name, first in before.items():
        moved = [2 * (a[name] - b[name]) for a, b in zip((before, *merged), merged, strict=False)]
        np.testing.assert_allclose(begun[0][name], first - moved[0], atol=1e-6)
        np.testing.assert_allclose(begun[1][name], merged[0][name] - moved[1], atol=1e-6)
    assert segment.weights.sha256 == file_sha256(store.path(f"{folder}/merged/2/model.safetensors"))
    with pytest.raises(SettingsError, match="delayed rounds need"):
        delayed(store, plan_of(store, "federated", "fp32"))
