"""Shares by expected hours, frozen; and text that moves to where it will be trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from micro import CURTAILED, EXPERIMENT, START, write_experiment
from test_checkpoints import fields

from curtail_pipeline.corpus.dealing import MANIFEST, frozen_shares
from curtail_pipeline.corpus.shard_set import build_tokenizer
from curtail_pipeline.errors import LedgerError, TraceError
from curtail_pipeline.scheduling.reconcile import SegmentRequest
from curtail_pipeline.stages.check_tokens import check_tokens
from curtail_pipeline.stages.deal import closing_ledger, ensure_dealt, initial_shares, opening_ledger
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.train import _plan
from curtail_pipeline.storage.manifest import Manifest

SEQUENCES = {"NORTH": 100, "SOUTH": 100, "EAST": 100}


def open_project(folder: Path, sites: dict[str, dict[str, Any]] | None = None, **corpus: Any) -> Project:
    changed = [site | (sites or {}).get(site["name"], {}) for site in EXPERIMENT["sites"]]
    path = write_experiment(folder / "input", corpus=EXPERIMENT["corpus"] | corpus, sites=changed)
    return Project.open(path, "replay", folder / "home")


def ingest(project: Project) -> None:
    for region in CURTAILED:
        save_ingested(project, ingest_day(project, region, START.date()))


# Shares


def test_shares_follow_the_hours_that_the_simulation_expects(tmp_path: Path) -> None:
    project = open_project(tmp_path, shares="expected")
    with pytest.raises(TraceError, match="materialise carbon_traces"):
        initial_shares(project)
    ingest(project)
    shares = initial_shares(project)
    # Windows of 90, 110 and 20 minutes: 250 s of start-up less, 600 s until they close more, in whole steps of 250 s.
    for site, ((first, last),) in CURTAILED.items():
        most = last - first + 10 - 250 / 60
        assert 0.8 * most <= 60 * shares[site] <= most, site


def test_a_site_without_windows_gets_a_hundredth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CURTAILED, "EAST", [(0, 0)])
    project = open_project(tmp_path, shares="expected")
    ingest(project)
    shares = initial_shares(project)
    assert shares["EAST"] == pytest.approx((shares["NORTH"] + shares["SOUTH"]) / 100)


def test_without_any_window_shares_are_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for site in list(CURTAILED):
        monkeypatch.setitem(CURTAILED, site, [(0, 0)])
    project = open_project(tmp_path, shares="expected")
    ingest(project)
    assert len(set(initial_shares(project).values())) == 1


def test_declared_shares_win_and_equal_needs_no_trace(tmp_path: Path) -> None:
    declared = open_project(tmp_path / "a", {"NORTH": {"share": 3.0}}, shares="expected")
    assert initial_shares(declared) == {"NORTH": 3.0, "SOUTH": 1.0, "EAST": 1.0}
    assert initial_shares(open_project(tmp_path / "b")) == {"NORTH": 1.0, "SOUTH": 1.0, "EAST": 1.0}


def test_shares_are_computed_once(tmp_path: Path) -> None:
    """What is ingested afterwards, and another end of the clock, deal nothing again."""
    project = open_project(tmp_path, shares="expected", sample_mib=0.05, max_documents=20)
    ingest(project)
    build_tokenizer(project.experiment.corpus, project.store)
    assert frozen_shares(project.store) is None
    dealt = ensure_dealt(project)
    expected = initial_shares(project)
    assert dealt.shares == {site: hours / sum(expected.values()) for site, hours in expected.items()}
    before = project.store.path(MANIFEST).read_bytes()
    project.store.delete("traces")
    assert ensure_dealt(project) == dealt
    assert project.store.path(MANIFEST).read_bytes() == before


# Rebalancing


def write_shards(project: Project) -> None:
    """Token files of SEQUENCES, and the shares they were dealt by."""
    length = project.experiment.training.sequence_length
    for site, n in SEQUENCES.items():
        folder = project.store.path(f"shards/{site}")
        folder.mkdir(parents=True)
        tokens = np.zeros(n * length + 1, dtype="<u2")
        tokens.tofile(folder / "000.bin")
        files = [{"name": "000.bin", "tokens": tokens.size}]
        project.store.write_json(
            f"shards/{site}/manifest.json", {"dtype": "uint16", "tokens": tokens.size, "files": files}
        )
    project.store.write_json(MANIFEST, {"shares": [["NORTH", 0.5], ["SOUTH", 0.4], ["EAST", 0.1]]})


def commit(project: Project, key: str, parent: Manifest | None = None, **more: Any) -> Manifest:
    file = project.store.path("made/model.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(key.encode())
    content = fields(parent.key if parent else None, parent.steps.end if parent else 0) | more
    return project.checkpoints.commit(key, {"model.safetensors": file}, content, int(key[-6:]))


def request(key: str, parent: str, *members: str) -> SegmentRequest:
    mode = "federated" if len(members) > 1 else "local"
    return SegmentRequest(key, 0, parent, members, mode, 1, START, "", {})  # type: ignore[arg-type]


def train(project: Project, plan: dict[str, Any], parent: Manifest, steps: dict[str, int]) -> Manifest:
    """Commit what the plan gives when its members do so many steps."""
    per_step = project.experiment.sequences_per_step
    sites: dict[str, Any] = {}
    for site, count in steps.items():
        left, consumed = count * per_step, []
        for epoch, start, stop, *owner in plan["open"]["lease"][site]:
            size = min(left, stop - start)
            if size:
                consumed.append([epoch, start, start + size, *owner])
            left -= size
        state = {"begin": "fresh", "end": "sha256:" + "a" * 64}
        tokens = count * project.experiment.training.total_batch_tokens
        sites[site] = {"steps": count, "tokens": tokens, "consumed": consumed, "inner_state": state}
    begin = parent.steps.end
    return commit(
        project,
        plan["key"],
        parent,
        mode=plan["mode"],
        members=plan["members"],
        sites=sites,
        steps={"begin": begin, "end": begin + sum(steps.values())},
        tokens={"segment": sum(site["tokens"] for site in sites.values())},
        ledger=closing_ledger(plan, {site: done["consumed"] for site, done in sites.items()}, parent),
    )


@pytest.fixture
def balanced(tmp_path: Path) -> Project:
    project = open_project(tmp_path, rebalance=True)
    write_shards(project)
    commit(project, "ckpt-000000")
    return project


def test_untouched_text_moves_to_where_it_will_be_trained_on(balanced: Project) -> None:
    first = balanced.checkpoints.manifest("ckpt-000000")
    plan = _plan(balanced, request("ckpt-000001", "ckpt-000000", "NORTH", "SOUTH"), first, None)
    # 300 sequences by shares of 0.5, 0.4 and 0.1, in whole steps of 8: EAST keeps about 30 of its 100.
    moved = [item for entry in plan["ledger"].values() for item in entry.get("moved", [])]
    given = sum(stop - start for _, start, stop, _ in moved)
    assert plan["ledger"].keys() == {"EAST"} and 56 <= given <= 70 and given % 8 == 0
    north = [item for item in plan["open"]["lease"]["NORTH"] if item[0] == 1]
    assert north[0] == (1, 0, 100) and all(item[3:] == ["EAST"] for item in north[1:])

    second = train(balanced, plan, first, {"NORTH": 16, "SOUTH": 2})
    assert 0 < sum(stop - start for _, start, stop in second.ledger["EAST"].consumed) == 16 * 8 - 100
    assert [list(item) for item in second.ledger["EAST"].moved] == plan["ledger"]["EAST"]["moved"]
    assert balanced.checkpoints.verify_chain()[-1] == "ckpt-000001"

    # And the next segment goes on from there, without EAST's own lease touching what it gave away.
    plan = _plan(balanced, request("ckpt-000002", "ckpt-000001", "EAST", "NORTH"), second, None)
    train(balanced, plan, second, {"EAST": 3, "NORTH": 4})
    assert balanced.checkpoints.verify_chain()[-1] == "ckpt-000002"
    for key in balanced.checkpoints.keys():
        outcome = check_tokens(balanced, key)
        assert outcome.passed, outcome.description


def test_only_the_beginning_of_a_lease_can_be_committed(balanced: Project) -> None:
    parent = balanced.checkpoints.manifest("ckpt-000000")
    plan = _plan(balanced, request("ckpt-000001", "ckpt-000000", "EAST"), parent, None)
    for consumed in ([(1, 1, 9)], [(1, 0, 100)]):
        with pytest.raises(LedgerError, match="no prefix of its lease"):
            closing_ledger(plan, {"EAST": consumed}, parent)


def test_nothing_moves_by_default(tmp_path: Path) -> None:
    project = open_project(tmp_path)
    write_shards(project)
    parent = commit(project, "ckpt-000000")
    assert opening_ledger(project, parent).to_json() == {}
    plan = _plan(project, request("ckpt-000001", "ckpt-000000", "NORTH"), parent, None)
    assert plan["ledger"] == {} and plan["open"]["lease"]["NORTH"][0] == (1, 0, 100)


def test_rounds_of_a_headless_plan_lease_one_after_the_other() -> None:
    parent = Manifest.model_construct(ledger={})
    rounds = [{"lease": {"A": [(1, 0, 8)]}}, {"lease": {"A": [(1, 8, 24)], "B": [(1, 0, 8)]}}]
    plan: dict[str, Any] = {"open": None, "rounds": rounds, "ledger": {}}
    # The first round was lost, so that its range was trained on in the second one.
    found = closing_ledger(plan, {"A": [(1, 0, 16)], "B": []}, parent)
    assert found == {"A": {"epoch": 1, "consumed": [(1, 0, 16)]}, "B": {"epoch": 1, "consumed": []}}
