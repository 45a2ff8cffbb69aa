"""Shares by expected hours, frozen; and text that moves to where it will be trained on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoint_cases import fields
from micro import CURTAILED, EXPERIMENT, START, write_experiment

from curtail_pipeline.corpus.corpus_records import DealingRecord, ShardFile, ShardManifest
from curtail_pipeline.corpus.dealing import MANIFEST, frozen_shares
from curtail_pipeline.corpus.documents import ReadCounts
from curtail_pipeline.corpus.shard_set import build_tokenizer
from curtail_pipeline.corpus.tokenizer import TokenizerInfo
from curtail_pipeline.errors import LedgerError, TraceError
from curtail_pipeline.federation.orders import Plan, PlannedRound
from curtail_pipeline.scheduling.reconcile import SegmentRequest
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.stages.check_tokens import check_tokens
from curtail_pipeline.stages.deal import closing_ledger, ensure_dealt, initial_shares, opening_ledger, shares_gap
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.train import Prospect
from curtail_pipeline.stages.train import _plan as make_plan
from curtail_pipeline.storage.manifest import InnerStates, Manifest, SiteResult
from curtail_pipeline.tokens.ranges import take_prefix

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


def test_shares_on_partial_traces_say_so(tmp_path: Path) -> None:
    traces = {"provider": "synthetic", "seed": 307, "start": "2026-03-21T00:00:00Z", "days": 2}
    sites = [{**EXPERIMENT["sites"][0], "name": name, "region": name} for name in ("CAISO_NORTH", "NEM_SA")]
    corpus = EXPERIMENT["corpus"] | {"shares": "expected", "sample_mib": 0.05, "max_documents": 20}
    experiment = parse_experiment({**EXPERIMENT, "traces": traces, "sites": sites, "corpus": corpus}, "test")
    project = Project.open(experiment, "headless", tmp_path)
    first, second = project.days
    for region, day in (("CAISO_NORTH", first), ("NEM_SA", first), ("CAISO_NORTH", second)):
        save_ingested(project, ingest_day(project, region, day))
    build_tokenizer(project.experiment.corpus, project.store)
    ensure_dealt(project)
    gap = shares_gap(project)
    assert gap is not None and f"1 of 4 regions' days (NEM_SA {second})" in gap
    save_ingested(project, ingest_day(project, "NEM_SA", second))
    assert shares_gap(project) == gap, "what came later dealt nothing again"


def test_shares_are_computed_once(tmp_path: Path) -> None:
    """What is ingested afterwards, and another end of the clock, deal nothing again."""
    project = open_project(tmp_path, shares="expected", sample_mib=0.05, max_documents=20)
    ingest(project)
    build_tokenizer(project.experiment.corpus, project.store)
    assert frozen_shares(project.store) is None
    dealt = ensure_dealt(project)
    assert shares_gap(project) is None
    expected = initial_shares(project)
    assert dealt.shares == {site: hours / sum(expected.values()) for site, hours in expected.items()}
    before = project.store.path(MANIFEST).read_bytes()
    project.store.delete("traces")
    assert ensure_dealt(project) == dealt
    assert project.store.path(MANIFEST).read_bytes() == before


# Rebalancing


NO_HASH = "0" * 64


SHARES = {"NORTH": 0.5, "SOUTH": 0.4, "EAST": 0.1}


def write_shards(project: Project, shares: dict[str, float] = SHARES) -> None:
    """Token files of SEQUENCES, and the shares they were dealt by."""
    length = project.experiment.training.sequence_length
    for site, n in ((site, SEQUENCES[site]) for site in shares):
        folder = project.store.path(f"shards/{site}")
        folder.mkdir(parents=True)
        tokens = np.zeros(n * length + 1, dtype="<u2")
        tokens.tofile(folder / "000.bin")
        manifest = ShardManifest(
            target=site, dealing_sha256=NO_HASH, tokenizer_sha256=NO_HASH, vocab_size=512, separator_id=0,
            dtype="uint16", engine="tokenizers", documents=1, bytes=1, tokens=tokens.size, slices=(),
            files=(ShardFile(name="000.bin", tokens=tokens.size, sha256=NO_HASH),), counts=ReadCounts(),
        )  # fmt: skip
        project.store.write_record(f"shards/{site}/manifest.json", manifest)
    dealt = DealingRecord(
        source="text", text_column="text", text_separator=None, document_chars=1, max_documents=None, files=(),
        slices=(), heldout_fraction=0.1, shares=tuple(shares.items()), shard_tokens=1024,
        tokenizer=TokenizerInfo(sha256=NO_HASH, vocab_size=512, separator="<|bos|>", separator_id=0),
    )  # fmt: skip
    project.store.write_record(MANIFEST, dealt)


def commit(project: Project, key: str, parent: Manifest | None = None, **more: Any) -> Manifest:
    file = project.store.path("made/model.safetensors")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(key.encode())
    content = fields(parent.key if parent else None, parent.steps.end if parent else 0) | more
    return project.checkpoints.commit(key, {"model.safetensors": file}, content, int(key[-6:]))


def plan_of(project: Project, key: str, parent: Manifest, *members: str) -> Plan:
    """What is planned for the members with a live clock."""
    request = SegmentRequest(
        key=key, attempt=1, parent=parent.key, members=members, mode="federated" if len(members) > 1 else "local",
        generation=1, start=START, reason="", previous={}, before_pause={},
    )  # fmt: skip
    return make_plan(project, Prospect(request, parent, View(project.experiment, {}, {}), None))


def train(project: Project, plan: Plan, parent: Manifest, steps: dict[str, int]) -> Manifest:
    """Commit what the plan gives when its members do so many steps."""
    assert plan.open is not None
    sites = {}
    for site, count in steps.items():
        sites[site] = SiteResult(
            steps=count,
            tokens=count * project.experiment.training.total_batch_tokens,
            consumed=take_prefix(plan.open.lease[site], count * project.experiment.sequences_per_step),
            inner_state=InnerStates(begin="fresh", end="sha256:" + "a" * 64),
        )
    begin = parent.steps.end
    return commit(
        project,
        plan.key,
        parent,
        mode=plan.mode,
        members=plan.members,
        sites=sites,
        steps={"begin": begin, "end": begin + sum(steps.values())},
        tokens={"segment": sum(site.tokens for site in sites.values())},
        ledger=closing_ledger(plan, {site: done.consumed for site, done in sites.items()}, parent),
    )


@pytest.fixture
def balanced(tmp_path: Path) -> Project:
    project = open_project(tmp_path, rebalance=True)
    write_shards(project)
    commit(project, "ckpt-000000")
    return project


def test_untouched_text_moves_to_where_it_will_be_trained_on(balanced: Project) -> None:
    first = balanced.checkpoints.manifest("ckpt-000000")
    plan = plan_of(balanced, "ckpt-000001", first, "NORTH", "SOUTH")
    # 300 sequences by shares of 0.5, 0.4 and 0.1, in whole steps of 8: EAST keeps about 30 of its 100.
    assert plan.open is not None
    moved = [item for entry in plan.ledger.values() for item in entry.moved]
    given = sum(stop - start for _, start, stop, _ in moved)
    assert plan.ledger.keys() == {"EAST"} and 56 <= given <= 70 and given % 8 == 0
    north = [item for item in plan.open.lease["NORTH"] if item[0] == 1]
    assert north[0] == (1, 0, 100) and all(item[3:] == ("EAST",) for item in north[1:])

    second = train(balanced, plan, first, {"NORTH": 16, "SOUTH": 2})
    assert 0 < sum(stop - start for _, start, stop in second.ledger["EAST"].consumed) == 16 * 8 - 100
    assert second.ledger["EAST"].moved == plan.ledger["EAST"].moved
    assert balanced.checkpoints.verify_chain()[-1] == "ckpt-000001"

    # And the next segment goes on from there, without EAST's own lease touching what it gave away.
    plan = plan_of(balanced, "ckpt-000002", second, "EAST", "NORTH")
    train(balanced, plan, second, {"EAST": 3, "NORTH": 4})
    assert balanced.checkpoints.verify_chain()[-1] == "ckpt-000002"
    for key in balanced.checkpoints.keys():
        outcome = check_tokens(balanced, key)
        assert outcome.passed, outcome.description


def test_only_the_beginning_of_a_lease_can_be_committed(balanced: Project) -> None:
    parent = balanced.checkpoints.manifest("ckpt-000000")
    plan = plan_of(balanced, "ckpt-000001", parent, "EAST")
    for consumed in ([(1, 1, 9)], [(1, 0, 100)]):
        with pytest.raises(LedgerError, match="no prefix of its lease"):
            closing_ledger(plan, {"EAST": consumed}, parent)


@pytest.mark.parametrize("fresh_first", [True, False])
def test_a_member_gets_fresh_text_of_others_before_it_repeats_its_own(tmp_path: Path, fresh_first: bool) -> None:
    project = open_project(tmp_path, fresh_first=fresh_first)
    write_shards(project)
    first = commit(project, "ckpt-000000")
    second = train(project, plan_of(project, "ckpt-000001", first, "NORTH"), first, {"NORTH": 10})
    plan = plan_of(project, "ckpt-000002", second, "NORTH")  # the longest segment takes 10 steps of 8 sequences
    assert plan.open is not None and plan.open.lease["NORTH"][0] == (1, 80, 100)
    rest = plan.open.lease["NORTH"][1]
    assert rest == ((1, 40, 100, "EAST") if fresh_first else (2, 0, 100))
    train(project, plan, second, {"NORTH": 10})
    assert project.checkpoints.verify_chain()[-1] == "ckpt-000002"


def test_nothing_moves_while_members_have_text_of_their_own(tmp_path: Path) -> None:
    project = open_project(tmp_path)
    write_shards(project)
    parent = commit(project, "ckpt-000000")
    assert opening_ledger(project, parent).to_json() == {}
    plan = plan_of(project, "ckpt-000001", parent, "NORTH")
    assert plan.ledger == {} and plan.open is not None and plan.open.lease["NORTH"][0] == (1, 0, 100)


def test_a_site_that_came_later_trains_on_text_of_the_others(tmp_path: Path) -> None:
    """Nothing is dealt again: each of the others gives up what it would read last, and the ledger counts it once."""
    project = open_project(tmp_path, fresh_first=False)
    write_shards(project, {"NORTH": 0.5, "SOUTH": 0.5})
    first = commit(project, "ckpt-000000")
    plan = plan_of(project, "ckpt-000001", first, "EAST", "NORTH")
    assert plan.open is not None and plan.terms.made_with["corpus"] == NO_HASH
    assert plan.open.lease["EAST"] and {item[3] for item in plan.open.lease["EAST"]} == {"NORTH", "SOUTH"}
    given = sum(stop - start for _, start, stop, _ in plan.open.lease["EAST"])
    assert 56 <= given <= 72 and given % 8 == 0, "a third of 200, in whole steps of 8"
    second = train(project, plan, first, {"EAST": given // 8, "NORTH": 1})
    again = plan_of(project, "ckpt-000002", second, "EAST", "SOUTH")
    assert again.open is not None
    more = [item for item in again.open.lease["EAST"] if item not in plan.open.lease["EAST"]]
    assert more and given > sum(item[2] - item[1] for item in more) > 0, "a third of what is left"
    train(project, again, second, {"EAST": 1, "SOUTH": 1})
    assert project.checkpoints.verify_chain()[-1] == "ckpt-000002"


def test_rounds_of_a_headless_plan_lease_one_after_the_other() -> None:
    parent = Manifest.model_construct(ledger={})
    rounds = (
        PlannedRound(index=0, steps={"A": 1}, lease={"A": ((1, 0, 8),)}),
        PlannedRound(index=1, steps={"A": 2, "B": 1}, lease={"A": ((1, 8, 24),), "B": ((1, 0, 8),)}),
    )
    plan = Plan.model_construct(open=None, rounds=rounds, ledger={})
    # The first round was lost, so that its range was trained on in the second one.
    found = closing_ledger(plan, {"A": [(1, 0, 16)], "B": []}, parent)
    assert found == {"A": {"epoch": 1, "consumed": [(1, 0, 16)]}, "B": {"epoch": 1, "consumed": []}}
