"""The picture of a checkpoint."""

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import polars as pl
import pytest
from test_account import project_with_a_hole

from curtail_pipeline.emissions import checkpoint_picture as drawn
from curtail_pipeline.stages import picture, run_report
from curtail_pipeline.stages.evaluate import evaluation_key
from curtail_pipeline.training.heldout_loss import Evaluation

MOST_BYTES = 50_000
"""It stands in the event log, base64-coded, twice per checkpoint."""


def texts(svg: str) -> list[str]:
    return [mark.text or "" for mark in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def shown(folder: Path, sites: int = 1, rounds: int = 8) -> drawn.Shown:
    """A checkpoint of so many sites and rounds."""
    project = project_with_a_hole(folder, 3_600)
    names = [f"SITE_{n}" for n in range(sites)]
    losses = pl.DataFrame(
        [("ckpt-000001", site, 1_000 * n, 8 / (1 + n / 300)) for n in range(1, rounds + 1) for site in names],
        schema=["checkpoint", "site", "tokens", "loss"],
        orient="row",
    )
    ledger = picture.checkpoint_ledger(project, "ckpt-000001")
    return drawn.Shown(
        manifest=project.checkpoints.manifest("ckpt-000001").model_copy(update={"members": names}),
        sites=[project.experiment.sites[0].model_copy(update={"name": name}) for name in names],
        losses=losses,
        heldout=losses.select("checkpoint", "tokens", "loss").gather_every(50),
        ledger=pl.concat([ledger.with_columns(site=pl.lit(name)) for name in names]),
        synthetic=True,
    )


def test_it_says_what_is_known(tmp_path: Path) -> None:
    project = project_with_a_hole(tmp_path, 3_600)
    evaluation = Evaluation(loss=3.25, perplexity=25.8, bits_per_byte=1.2, tokens=99)
    project.store.write_record(evaluation_key("ckpt-000001"), evaluation)
    svg = picture.checkpoint_picture(project, "ckpt-000001")
    said = texts(svg)
    assert said[:2] == [
        "ckpt-000001 · 14.4 k tokens of 14.4 k · held-out loss 3.250",
        "local, SPP_TX · 1 kWh, 10 g CO2: projected (virtual time, modelled power)",
    ]
    assert {"loss, nat per token", "tokens", "16k", "SPP_TX", "training", "kWh", "g CO2", "10 g"} <= {*said}
    assert len(svg) < 8_000


def test_what_is_not_known_yet_is_said(tmp_path: Path) -> None:
    project = project_with_a_hole(tmp_path, None)
    for key, who in (("ckpt-000000", "init"), ("ckpt-000001", "local, SPP_TX")):
        title, subtitle, *_ = texts(picture.checkpoint_picture(project, key))
        assert title.endswith("held-out loss not evaluated yet") and subtitle.startswith(who)
    content = shown(tmp_path / "unaccounted")
    dark = content.ledger.with_columns(unaccounted_kwh=pl.col("kwh"), co2_g=pl.lit(None, pl.Float64))
    assert "no accounting signal" in texts(drawn.picture(replace(content, ledger=dark)))


def test_a_loss_that_is_no_number_leaves_the_others(tmp_path: Path) -> None:
    """As a model's that diverged is held to be; it took the picture, and with it the trained segment."""
    content = shown(tmp_path)
    holed = content.losses.with_columns(loss=pl.when(pl.col("tokens") == 2_000).then(float("nan")).otherwise("loss"))
    svg = drawn.picture(replace(content, losses=holed))
    assert "nan" not in svg.lower() and svg.count("h0") == 7 + 1, "dots, and the legend's"
    none = content.losses.with_columns(loss=pl.lit(float("inf")))
    svg = drawn.picture(replace(content, losses=none, heldout=content.heldout.head(0)))
    assert "loss, nat per token" not in texts(svg) and "tokens" in texts(svg)


def test_a_picture_of_many_rounds_and_sites_stays_small(tmp_path: Path) -> None:
    svg = drawn.picture(shown(tmp_path, sites=12, rounds=400))
    assert 20_000 < len(svg) < MOST_BYTES
    said = texts(svg)
    assert said[1].startswith("local, 12 sites · ")
    assert said.count("SITE_11") == 3, "legend, energy and CO2"


def renamed(content: drawn.Shown, name: str) -> drawn.Shown:
    """The same of a site of another name."""
    frames = {part: getattr(content, part).with_columns(site=pl.lit(name)) for part in ("losses", "ledger")}
    return replace(content, sites=[content.sites[0].model_copy(update={"name": name})], **frames)


def test_names_that_mean_something_to_xml_are_names(tmp_path: Path) -> None:
    odd = '<a & "b">'
    assert texts(drawn.picture(renamed(shown(tmp_path), odd))).count(odd) == 3


def test_all_that_is_drawn_is_inside(tmp_path: Path) -> None:
    long = "a-site-whose-name-is-longer-than-there-is-room-for"
    svg = drawn.picture(renamed(shown(tmp_path), long))
    root = ElementTree.fromstring(svg)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    places = re.findall(r'<text x="([\d.-]+)" y="([\d.-]+)"', svg)
    assert len(places) > 20
    for x, y in places:
        assert 0 <= float(x) <= width and 0 <= float(y) <= height
    assert texts(svg).count(long) == 1, "in the legend; beside the bars it is cut"


def test_a_picture_takes_no_library_of_charts() -> None:
    """By Vega it was 0.3 s of CPU, and a second for the first of every run."""
    code = "import sys, curtail_pipeline.stages.picture; print({'altair', 'vl_convert', 'torch'} & sys.modules.keys())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


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
