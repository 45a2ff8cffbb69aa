"""Ten faults in one run on this machine: it ends as if there had been none."""

from pathlib import Path

import pytest

from curtail_pipeline.benchmarks.bench_chaos import Episode, Tally
from curtail_pipeline.benchmarks.chaos_faults import RUN_KILLED
from curtail_pipeline.benchmarks.fault_injector import Phase

TEN = [
    ("stop supervisor for ever", Phase.PROVISIONING, "NORTH"),
    ("kill superlink", Phase.TRAIN, "NORTH"),
    ("stop serverapp for ever", Phase.BETWEEN_ROUNDS, "NORTH"),
    ("kill superexec of a supernode", Phase.TRAIN, "NORTH"),
    ("stop trainer for ever", Phase.TRAIN, "NORTH"),
    (RUN_KILLED, Phase.COMMIT, "NORTH"),
    ("forge weights", Phase.TRAIN, "SOUTH"),
    ("stop supernode for ever", Phase.REPLY, "SOUTH"),
    ("damage checkpoint", Phase.BETWEEN_SEGMENTS, "SOUTH"),
    ("kill clientapp", Phase.UPLOAD, "EAST"),
]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ten_faults_leave_nothing_behind(tmp_path: Path) -> None:
    tally = Tally()
    with Episode(tmp_path / "run", "local", steps=100) as episode:
        for kind, phase, site in TEN:
            episode.disturb(kind, phase, site, tally)
        episode.finish(tally)
    assert tally.finished and tally.ledger_exact and tally.commits_valid, tally.problems
    assert (tally.orphans, tally.ports) == (0, 0), tally.problems
    assert [kind for _, kind, _, overcome in tally.strikes if overcome is None] == []
    assert len(tally.strikes) == len(TEN)
