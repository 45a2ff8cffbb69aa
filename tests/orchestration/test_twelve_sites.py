"""Twelve sites on one machine that join, pause and leave: a real SuperLink, SuperNodes and trainers, on two cores."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
from micro import EXPERIMENT, START, curtail, write_experiment

from curtail_pipeline.benchmarks.chaos_checks import miscounted, orphans
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.records import Json

NAMES = [f"S{number:02d}" for number in range(12)]
LEAVES, JOINS = NAMES[:6], NAMES[6:9]
CURTAILED = {
    name: [(10, 50)] if name in LEAVES else [(30 if name in JOINS else 10, 65), (95, 110)] for name in NAMES
}  # fmt: skip
"""Minutes from START: nine sites, all twelve, six of them, a pause, and the six again."""
START_UP_MIN, EXIT_MIN = 250 / 60, 10


def by_the_rule(minute: float) -> list[str]:
    """Who trains then: curtailed, and started up, until the exit delay is over."""
    return [
        name
        for name, spans in CURTAILED.items()
        if any(first + START_UP_MIN <= minute + 1e-9 < last + EXIT_MIN for first, last in spans)
    ]


@pytest.mark.long
def test_twelve_sites_join_pause_and_leave(tmp_path: Path) -> None:
    site = {"training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.004}
    experiment = write_experiment(
        tmp_path / "experiment",
        CURTAILED,
        sites=[{"name": name, "region": name, **site} for name in NAMES],
        clock={"end": "2026-05-01T02:05:00Z"},
        rounds={"round_s": 1500, "max_rounds": 2},
        # twelve imports of torch on two cores, which others may share
        federation={"start_timeout_s": 600, "liveness_s": 120, "delivery_s": 300},
    )
    done = curtail("run", "--experiment", str(experiment), "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert orphans(tmp_path) == []
    summary = json.loads(done.stdout.splitlines()[-1])
    checkpoints = Checkpoints(FolderStore(tmp_path / "micro" / "store"))
    found = [checkpoints.manifest(key) for key in checkpoints.verify_chain()]
    segments = found[1:]
    assert [len(each.members) for each in segments] == [9, 12, 6, 6]
    for each in segments:
        assert each.members == by_the_rule((each.start - START).total_seconds() / 60), each.key
        assert all(each.sites[name].steps > 0 for name in each.members), f"nobody was lost or refused: {each.key}"
    pauses = [(before.end, after.start) for before, after in pairwise(segments) if before.end < after.start]
    assert len(pauses) == 1 and not by_the_rule((pauses[0][0] - START).total_seconds() / 60)
    lineage: list[dict[str, Json]] = [each.model_dump(mode="json") for each in found]
    assert miscounted(lineage, EXPERIMENT["training"]["sequence_length"]) is None
    last = segments[-1]
    assert last.tokens.total == summary["tokens"] and last.ledger.keys() == set(NAMES)
    for name, ledger in last.ledger.items():  # by whose text it is: a site that is through with its own takes others'
        spans = sorted(ledger.consumed)
        assert spans[0][1] == 0 and all(one[2] <= two[1] for one, two in pairwise(spans)), f"text of {name} twice"
