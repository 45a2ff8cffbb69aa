"""What `bench soak` replays, and what it says of two replays."""

from pathlib import Path

from curtail_pipeline.benchmarks.bench_soak import CURTAILED, STEPS, Figures, figures, processes, write_week
from curtail_pipeline.benchmarks.chaos_setups import Part
from curtail_pipeline.settings.experiment import load_experiment


def test_a_week_has_a_window_of_every_site_on_every_day(tmp_path: Path) -> None:
    experiment = load_experiment(write_week(tmp_path, 2500, 7))
    assert (experiment.job.steps, experiment.replay.speed) == (STEPS, 2500)
    rows = [line.split(",") for line in (tmp_path / "trace.csv").read_text().splitlines()]
    assert rows[0] == ["time", *CURTAILED] and len(rows) == 1 + 7 * 288
    for column in range(1, len(rows[0])):
        low = [float(row[column]) < 100 for row in rows[1:]]
        assert sum(now and not before for before, now in zip([False, *low], low, strict=False)) == 7
        assert sum(low) == 7 * 8 * 12


def test_two_replays_are_compared_and_what_was_not_killed_is_named() -> None:
    plain = Figures(STEPS, 600, 9, 4.0, "a", True, True)
    disturbed = Figures(STEPS, 600, 12, 4.02, "b", True, True, orphans=1)
    everything = processes()
    assert {"curtail ui", "daemon", "supervisor", "trainer of EAST"} < {*everything}
    assert len(everything) == 5 + 5 + 3 * len(CURTAILED) and {*Part} - {*everything} == {
        Part.TRAINER, Part.SUPERNODE, Part.SITE_SUPEREXEC,
    }  # fmt: skip
    found = figures(plain, disturbed, everything[1:], everything)
    assert found["finished"] is True and found["heldout_loss_change"] == 0.005
    assert found["same"] == {
        "steps": True, "tokens": True, "windows_sha256": False, "ledger_exact": True, "commits_valid": True,
        "orphans": False, "ports": True,
    }  # fmt: skip
    assert found["not_killed"] == ["curtail ui"]
    assert figures(plain, Figures(10), [], [])["finished"] is False
