"""What a run prints when it has ended."""

from curtail_pipeline.cli import console
from curtail_pipeline.emissions.baselines import Compared
from curtail_pipeline.stages.account import RunSummary


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
        start="2026-05-01T00:00:00Z",
        end="2026-05-01T02:00:00Z",
        checkpoints=[],
        steps=3,
        tokens=24,
        kwh=4.0,
        co2_g=80.0,
        curtailed_share=None,
        unaccounted_kwh=0.0,
        baselines=[baseline],
        report="report/index.html",
        checkpoint="ckpt-000001",
        home="home",
    )
    with console.OUT.capture() as printed:
        console.print_summary(summary, "job done")
    lines = [line.strip() for line in printed.get().splitlines()]
    assert "no gCO2 of a baseline: the trace of EAST ends too early" in lines
    assert "try: job done; 3 steps, 24 tokens on recorded traces" in lines
