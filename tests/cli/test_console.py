"""What a run prints when it has ended."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from curtail_pipeline.cli import console
from curtail_pipeline.emissions.baselines import Compared
from curtail_pipeline.federation.progress import RoundMerged
from curtail_pipeline.stages.central_reference import CentralReference
from curtail_pipeline.stages.checkpoint_rows import CheckpointRow
from curtail_pipeline.stages.run_report import RunSummary


def test_the_closing_line_says_why_the_run_ended() -> None:
    """Also when a baseline has a reason of its own."""
    baseline = Compared(
        region="EAST",
        site="EAST",
        steps=3,
        hours=2.0,
        kwh=4.0,
        co2_g=None,
        unaccounted_kwh=4.0,
        reason="the trace of EAST ends too early",
        ours_of_baseline=None,
    )
    summary = RunSummary(
        experiment="try",
        synthetic=False,
        basis="projected (virtual time, modelled power)",
        start="2026-05-01T00:00:00Z",
        end="2026-05-01T02:00:00Z",
        checkpoints=[row(1, heldout_loss=4.3)],
        steps=3,
        tokens=24,
        kwh=4.0,
        co2_g=80.0,
        co2_g_low=80.0,
        co2_g_high=95.0,
        curtailed_share=None,
        unaccounted_kwh=1.0,
        baselines=[baseline],
        centralised=CentralReference(loss=4.25, reason="curtail bench central, 2026-11-26"),
        report="report/index.html",
        checkpoint="ckpt-000001",
        home="home",
    )
    with console.OUT.capture() as printed:
        console.print_summary(summary, "job done")
    lines = [line.strip() for line in printed.get().splitlines()]
    assert "no gCO2 of a baseline: the trace of EAST ends too early" in lines
    said = " ".join(lines)
    assert "try: job done; 3 steps, 24 tokens on recorded traces; energy and CO2: projected (virtual time," in said
    assert "held-out loss 4.300, centralised with as many tokens 4.250: 0.050 above (curtail bench central, 20" in said
    assert "1.00 kWh have no accounting signal: between 80 and 95 gCO2 with them" in said
    assert "same steps; kWh and gCO2: projected (virtual time, modelled power)" in said


def test_a_round_without_steps_hides_no_loss(capsys: pytest.CaptureFixture[str]) -> None:
    at = datetime(2026, 5, 1, tzinfo=UTC)
    tokens = SimpleNamespace(segment=24)
    content = SimpleNamespace(
        start=at, end=at, mode="local", key="ckpt-000001", members=("A",), rounds=2, tokens=tokens
    )
    with console.RunConsole(cast(Any, None)) as shown:
        shown(RoundMerged(round=0, steps={"A": 3}, tokens=24, loss=4.25))
        shown(RoundMerged(round=8, steps={"A": 0}, tokens=0, loss=None))
        shown(console.Committed(cast(Any, content)))
    assert "A: 2 rounds, 24 tokens, loss 4.250" in capsys.readouterr().err


def row(number: int, **changes: object) -> CheckpointRow:
    content = {
        "key": f"ckpt-{number:06d}",
        "parent": None,
        "mode": "local",
        "members": ["EAST"],
        "rounds": 2,
        "steps": number,
        "tokens": 1_024,
        "total_tokens": 1_024 * number,
        "start": "2026-05-01T00:00:00Z",
        "end": "2026-05-01T02:00:00Z",
        "stop_reason": "EAST leaves: [500] >= 100",
        "weights_sha256": None,
        "heldout_loss": None,
        "kwh": 1.0,
        "co2_g": 80.0,
        "basis": "projected (virtual time, modelled power), synthetic signal",
    }
    return CheckpointRow(**{**content, **changes})  # type: ignore[arg-type]


def test_a_long_list_says_what_a_short_one_does(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [row(number, tokens=1_024 * number) for number in range(console.LONG)]
    console.print_checkpoints(rows)
    lines = capsys.readouterr().out.splitlines()
    title = "Checkpoints; kWh and gCO2: projected (virtual time, modelled power), synthetic signal"
    assert lines.pop(0) == title
    assert len(lines) == 1 + console.LONG and len(set(map(len, lines))) <= 2
    with console.OUT.capture() as printed:
        console.print_checkpoints(rows[-2:])
    assert title in " ".join(printed.get().split())
    boxed = [line.split("│")[1:-1] for line in printed.get().splitlines() if "ckpt-" in line]
    for line, cells in zip(lines[-2:], boxed, strict=True):
        assert line.split() == " ".join(cells).split()
        assert line.endswith("EAST leaves: [500] >= 100")


def test_names_of_regions_are_no_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    """Rich has a picture for `:on:`."""
    console.OUT.print("US:on:PJM")
    console.ERR.print("US:on:PJM")
    assert [text.strip() for text in capsys.readouterr()] == ["US:on:PJM", "US:on:PJM"]
