"""The picture of a checkpoint."""

from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from test_account import project_with_a_hole

from curtail_pipeline.emissions import checkpoint_picture as drawn
from curtail_pipeline.stages import picture, run_report
from curtail_pipeline.stages.evaluate import evaluation_key
from curtail_pipeline.training.heldout_loss import Evaluation


def test_it_is_a_small_png_that_says_what_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = project_with_a_hole(tmp_path, 3_600)
    evaluation = Evaluation(loss=3.25, perplexity=25.8, bits_per_byte=1.2, tokens=99)
    project.store.write_record(evaluation_key("ckpt-000001"), evaluation)
    shown: list[drawn.Shown] = []
    monkeypatch.setattr(picture, "picture", lambda content: shown.append(content) or drawn.picture(content))
    png = picture.checkpoint_picture(project, "ckpt-000001")
    assert png.startswith(b"\x89PNG") and 2_000 < len(png) <= drawn.MOST_BYTES
    (content,) = shown
    title = drawn._title(content)
    assert title.text == "ckpt-000001 · 14.4 k tokens of 14.4 k · held-out loss 3.250"
    assert title.subtitle == "local, SPP_TX · 1 kWh, 10 g CO2: projected (virtual time, modelled power)"
    assert content.heldout.drop("time").rows() == [("ckpt-000001", 14_400, 3.25)]


def test_what_is_not_known_yet_is_said(tmp_path: Path) -> None:
    project = project_with_a_hole(tmp_path, None)
    for key, who in (("ckpt-000000", "init"), ("ckpt-000001", "local, SPP_TX")):
        png = picture.checkpoint_picture(project, key)
        assert png.startswith(b"\x89PNG"), who


def test_a_loss_that_is_no_number_is_left_out(tmp_path: Path) -> None:
    """That of a model that diverged; it would take the trained segment's materialisation with it."""
    project = project_with_a_hole(tmp_path, 3_600)
    key, sites = "ckpt-000001", project.experiment.sites
    losses = [4.5, float("nan"), float("inf")]
    rounds = pl.DataFrame({"checkpoint": key, "site": sites[0].name, "tokens": [1_000, 2_000, 3_000], "loss": losses})
    heldout = rounds.select("checkpoint", "tokens", "loss")
    ledger = picture.checkpoint_ledger(project, key)
    shown = drawn.Shown(project.checkpoints.manifest(key), sites, rounds, heldout, ledger, True)
    assert drawn.picture(shown).startswith(b"\x89PNG")


def test_a_picture_of_many_rounds_and_sites_stays_small(tmp_path: Path) -> None:
    project = project_with_a_hole(tmp_path, 3_600)
    manifest = project.checkpoints.manifest("ckpt-000001")
    sites = project.experiment.sites
    rounds = pl.DataFrame(
        {
            "checkpoint": ["ckpt-000001"] * 2_000,
            "site": [sites[0].name] * 2_000,
            "tokens": [*range(0, 2_000_000, 1_000)],
            "loss": [8 / (1 + n / 300) + (n * 7919 % 100) / 100 for n in range(2_000)],
        }
    )
    ledger = pl.concat([picture.checkpoint_ledger(project, "ckpt-000001")] * 4)
    heldout = rounds.select("checkpoint", "tokens", "loss").gather_every(50)
    png = drawn.picture(drawn.Shown(manifest, sites, rounds, heldout, ledger, True))
    assert len(png) <= drawn.MOST_BYTES


def test_a_round_without_steps_is_no_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It exchanges what is left of the weights' fragments, and has no loss."""
    project = project_with_a_hole(tmp_path, 3_600)
    manifest = project.checkpoints.manifest("ckpt-000001")

    def line(steps: int, loss: float | None) -> SimpleNamespace:
        done = SimpleNamespace(end=manifest.end, tokens={"SPP_TX": 8 * steps}, steps={"SPP_TX": steps})
        return SimpleNamespace(done=done, results={"SPP_TX": SimpleNamespace(loss_mean=loss)})

    monkeypatch.setattr(run_report, "read_journal", lambda *_: [line(1_800, 4.5), line(0, None)])
    shown = run_report.training_losses(project, [manifest])
    assert shown.select("tokens", "loss").rows() == [(14_400, 4.5)]
