"""The blocking check of the token ledger: on good lineages, on damaged ones, and what it keeps from running."""

import json
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from checkpoint_cases import fields, ledger
from micro import write_experiment

from assets.segments import aggregated_checkpoint
from curtail_pipeline.errors import LedgerError
from curtail_pipeline.orchestration.partitions import CHECKPOINTS
from curtail_pipeline.orchestration.resources import PipelineResource, silent
from curtail_pipeline.stages.account import show_checkpoint
from curtail_pipeline.stages.check_tokens import TOKEN_LEDGER, check_tokens
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.manifest import make_manifest


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project.open(write_experiment(tmp_path / "input"), "headless", tmp_path / "home")


def commit(project: Project, key: str, parent: str | None = None, first: int = 0, epoch: int = 1) -> None:
    file = project.store.path("made/model.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"weights of " + key.encode())
    content = fields(parent, begin=first, first=first)
    for site in content["sites"].values():
        site["tokens"] = 5 * project.experiment.training.sequence_length
        site["consumed"] = [[epoch, *site["consumed"][0][1:]]]
    content["tokens"] = {"segment": sum(site["tokens"] for site in content["sites"].values())}
    project.checkpoints.commit(key, {"model.safetensors": file}, content, int(key[-6:]))


def forge(project: Project, key: str, **changes: Any) -> None:
    """Replace a manifest by one that is sealed properly but says something else."""
    path = Path(project.checkpoints.where(key)) / "manifest.json"
    content = json.loads(path.read_bytes())
    path.write_bytes(make_manifest({k: v for k, v in content.items() if k != "content_sha256"} | changes).to_bytes())


@pytest.fixture
def lineage(project: Project) -> Project:
    commit(project, "ckpt-000000")
    commit(project, "ckpt-000001", "ckpt-000000")
    commit(project, "ckpt-000002", "ckpt-000001", first=5)
    return project


def test_a_good_lineage_passes(lineage: Project) -> None:
    outcomes = [check_tokens(lineage, key) for key in lineage.checkpoints.keys()]
    assert [(outcome.passed, outcome.metadata["tokens"]) for outcome in outcomes] == [
        (True, 0),
        (True, 320),
        (True, 640),
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ledger": ledger([(1, 0, 9)])}, "ledger of SPP_TX, epoch 1"),
        ({"ledger": ledger([(1, 0, 5), (1, 6, 11)])}, "ledger of SPP_TX, epoch 1"),
        ({"tokens": {"segment": 320, "total": 641}}, "tokens.total is 641, its ranges hold 640"),
        ({"tokens": {"segment": 319, "total": 640}}, "tokens.segment is 319"),
    ],
)
def test_a_ledger_that_does_not_add_up_fails(lineage: Project, changes: dict[str, Any], says: str) -> None:
    forge(lineage, "ckpt-000002", **changes)
    outcome = check_tokens(lineage, "ckpt-000002")
    assert not outcome.passed and outcome.blocking and says in outcome.description


def test_ranges_half_as_long_as_the_steps_are_not_committed_and_verify_finds_them(lineage: Project) -> None:
    content = fields("ckpt-000002", begin=10, first=10)
    halved = {"consumed": [[1, 10, 12]], "tokens": 5 * lineage.experiment.training.sequence_length}
    content["sites"]["SPP_TX"] |= halved
    content["tokens"] = {"segment": halved["tokens"]}
    file = lineage.store.path("made/model.safetensors")
    with pytest.raises(LedgerError, match=r"tokens.total is 960, its ranges hold 768"):
        lineage.checkpoints.commit("ckpt-000003", {"model.safetensors": file}, content, 3)
    assert not lineage.checkpoints.exists("ckpt-000003")
    Checkpoints(lineage.store).commit("ckpt-000003", {"model.safetensors": file}, content, 3)  # as it was let through
    assert not check_tokens(lineage, "ckpt-000003").passed
    for verify in (lineage.checkpoints.verify_chain, lambda: lineage.checkpoints.verify_link("ckpt-000003")):
        with pytest.raises(LedgerError, match="its ranges hold 768"):
            verify()


def test_a_segment_that_trains_on_its_parents_text_fails(lineage: Project) -> None:
    forge(lineage, "ckpt-000001", ledger=ledger([(1, 0, 7)]))
    outcome = check_tokens(lineage, "ckpt-000002")
    assert not outcome.passed and "counted twice" in outcome.description


def test_a_damaged_manifest_fails_with_the_reason(lineage: Project) -> None:
    shutil.rmtree(Path(lineage.checkpoints.where("ckpt-000001")))
    assert "ckpt-000001" in check_tokens(lineage, "ckpt-000002").description


def test_show_tells_tokens_by_site_epoch_and_share(lineage: Project) -> None:
    commit(lineage, "ckpt-000003", "ckpt-000002", first=10, epoch=2)
    shown = show_checkpoint(lineage, "ckpt-000003")
    assert shown["consumed"] == [
        {"site": "SPP_TX", "epoch": 1, "sequences": 10, "tokens": 640, "share": 10 / 15},
        {"site": "SPP_TX", "epoch": 2, "sequences": 5, "tokens": 320, "share": 5 / 15},
    ]
    assert shown["key"] == "ckpt-000003" and shown["heldout_loss"] is None
    assert show_checkpoint(lineage, "ckpt-000000")["consumed"] == []


@pytest.mark.parametrize("good", [True, False])
def test_a_failed_check_keeps_what_follows_from_running(project: Project, good: bool) -> None:
    """The real asset on the initialised model, with an asset behind it."""
    commit(project, "ckpt-000000")
    if not good:
        forge(project, "ckpt-000000", ledger=ledger([(1, 0, 4)]))
    ran = []

    @dg.asset(partitions_def=CHECKPOINTS, deps=[aggregated_checkpoint])
    def follows() -> None:
        ran.append(True)

    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions("checkpoints", ["ckpt-000000"])
        result = dg.materialize(
            [aggregated_checkpoint, follows],
            partition_key="ckpt-000000",
            instance=instance,
            resources={
                "pipeline": PipelineResource(experiment=str(project.home.root / "experiment.yaml"), clock="headless"),
                "progress": dg.ResourceDefinition.hardcoded_resource(silent),
            },
            raise_on_error=False,
        )
    (evaluation,) = result.get_asset_check_evaluations()
    assert evaluation.check_name == TOKEN_LEDGER and evaluation.passed is good
    assert evaluation.severity == dg.AssetCheckSeverity.ERROR
    assert result.success is good and ran == [True] * good
    if not good:
        assert "ledger of SPP_TX" in (evaluation.description or "")
