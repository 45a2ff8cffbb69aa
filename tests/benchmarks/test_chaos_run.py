"""Ten faults in one run on this machine: it ends as if there had been none."""

from pathlib import Path

import pytest

from curtail_pipeline.benchmarks.bench_chaos import Episode, Tally
from curtail_pipeline.benchmarks.chaos_faults import RUN_KILLED
from curtail_pipeline.benchmarks.fault_injector import Phase

TEN = [
    ("kill superlink", Phase.TRAIN, "NORTH"),
    ("kill superexec of a supernode", Phase.TRAIN, "NORTH"),
    ("kill trainer", Phase.TRAIN, "NORTH"),
    (RUN_KILLED, Phase.COMMIT, "NORTH"),
    ("forge weights", Phase.TRAIN, "SOUTH"),
    ("kill superexec of the superlink", Phase.BETWEEN_SEGMENTS, "SOUTH"),
    ("kill supernode", Phase.REPLY, "SOUTH"),
    ("damage checkpoint", Phase.BETWEEN_SEGMENTS, "SOUTH"),
    ("kill serverapp", Phase.BETWEEN_ROUNDS, "SOUTH"),
    ("kill clientapp", Phase.TRAIN, "EAST"),
]


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_ten_faults_leave_nothing_behind(tmp_path: Path) -> None:
    tally = Tally()
    with Episode(tmp_path / "run", "local", steps=200, patience_s=1.0) as episode:
        for kind, phase, site in TEN:
            while episode.running() and episode.disturb(kind, phase, site, tally) is None:
                pass  # what it is to hit was not there
        episode.finish(tally)
    assert tally.finished and tally.ledger_exact and tally.commits_valid, tally.problems
    assert (tally.orphans, tally.ports) == (0, 0), tally.problems
    assert [kind for _, kind, _, _ in tally.strikes] == [kind for kind, _, _ in TEN], "the run was over too early"
