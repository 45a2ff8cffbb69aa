"""When a run is compared with a stored centralised curve, and why not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from curtail_pipeline.benchmarks import bench_central
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.central_curve import CentralCurve, CentralCurves, identity_of, stored_curves
from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.stages import central_reference as module
from curtail_pipeline.stages.central_reference import central_reference, heldout_text
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.folder_store import FolderStore

LAPTOP = load_experiment("laptop")


def project_of(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str = "text", **changes: Any) -> Project:
    curve = CentralCurve(
        experiment="laptop", identity=identity_of(LAPTOP), heldout="text", tokens=(0, 100, 300), losses=(8.0, 6.0, 5.0)
    )
    curves = CentralCurves(command="curtail bench central", date="2026-11-26", machine="", version="", curves=(curve,))
    monkeypatch.setattr(module, "stored_curves", lambda: curves)
    monkeypatch.setattr(module, "heldout_text", lambda store: text)
    experiment = LAPTOP.model_copy(update=changes)
    return cast(Project, SimpleNamespace(experiment=experiment, store=FolderStore(folder)))


def test_the_loss_at_as_many_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = project_of(tmp_path, monkeypatch)
    assert [central_reference(project, tokens).loss for tokens in (0, 50, 100, 200, 300)] == [8.0, 7.0, 6.0, 5.5, 5.0]
    found = central_reference(project, 301)
    assert found.loss is None and found.reason == "the stored one covers 0 to 300 tokens, the run has 301"


def test_who_trains_when_is_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = LAPTOP.rounds.model_copy(update={"outer_momentum": 0.5})
    corpus = LAPTOP.corpus.model_copy(update={"rebalance": not LAPTOP.corpus.rebalance})
    assert central_reference(project_of(tmp_path, monkeypatch, rounds=rounds, corpus=corpus), 100).loss == 6.0


def test_another_experiment_or_text_has_none_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = central_reference(project_of(tmp_path, monkeypatch, seed=1), 100)
    assert found.loss is None and "none is stored of this experiment: `curtail bench central`" in found.reason
    found = central_reference(project_of(tmp_path, monkeypatch, "another"), 100)
    assert found.loss is None and "of another text" in found.reason
    assert heldout_text(FolderStore(tmp_path)) == ""


def test_a_curve_is_stored_for_the_laptop_experiment() -> None:
    stored = stored_curves()
    (curve,) = [curve for curve in stored.curves if curve.identity == identity_of(LAPTOP)]
    assert stored.command.startswith("curtail bench central --experiment laptop") and curve.losses[-1] < 4.5


@pytest.mark.parametrize("name", ["a/../b", "", "two words", "x" * 65])
def test_the_only_site_has_a_name_that_a_site_may_have(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="is no name of a site"):
        bench_central.run(site=name, steps=1, out=str(tmp_path / "curve.json"))
    assert not list(tmp_path.iterdir())
