"""The ledger's rules one by one: leases, commits, what it refuses, rebalancing, verification."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curtail_pipeline.errors import LedgerError
from curtail_pipeline.tokens.balance import balance, fresh_first, summarise
from curtail_pipeline.tokens.ledger import Ledger
from curtail_pipeline.tokens.ranges import drop_prefix, take_prefix, total


def trained(ledger: Ledger, site: str, ranges: list) -> Ledger:
    return ledger.commit({site: {"lease": ranges, "consumed": ranges}})


def test_a_lease_is_the_first_unconsumed_and_only_a_commit_consumes_it() -> None:
    ledger = Ledger()
    assert ledger.lease("A", 6, 100) == [(1, 0, 6)] == ledger.lease("A", 6, 100)
    after = ledger.commit({"A": {"lease": [(1, 0, 6)], "consumed": [(1, 0, 4)]}})
    assert after.lease("A", 6, 100) == [(1, 4, 10)]
    assert after.consumed("A") == [(1, 0, 4)] and ledger.consumed("A") == []
    assert after.tokens(256) == 4 * 256
    assert after.lease("B", 2, 50) == [(1, 0, 2)]


def test_what_a_lost_round_leaves_is_leased_first() -> None:
    ledger = Ledger()
    whole = ledger.lease("A", 12, 100)
    second = drop_prefix(whole, 6)
    ledger = ledger.commit({"A": {"lease": take_prefix(whole, 6), "consumed": []}})
    ledger = trained(ledger, "A", second)
    assert ledger.lease("A", 8, 100) == [(1, 0, 6), (1, 12, 14)]


def test_the_next_pass_begins_where_the_shards_end() -> None:
    ledger = trained(Ledger(), "A", [(1, 0, 98)])
    assert ledger.lease("A", 6, 100, "next_epoch") == [(1, 98, 100), (2, 0, 4)]
    after = trained(ledger, "A", [(1, 98, 100), (2, 0, 4)])
    assert (ledger.epoch("A"), after.epoch("A")) == (1, 2)
    assert after.lease("A", 200, 100) == [(2, 4, 100), (3, 0, 100), (4, 0, 4)]


def test_a_site_that_is_done_gets_whole_steps_only() -> None:
    ledger = trained(Ledger(), "A", [(1, 0, 90)])
    assert ledger.lease("A", 8, 100, "done", multiple=4) == [(1, 90, 98)]
    assert ledger.lease("A", 12, 100, "done", multiple=4) == [(1, 90, 98)]
    done = trained(ledger, "A", [(1, 90, 98)])
    assert done.lease("A", 4, 100, "done", multiple=4) == []


@pytest.mark.parametrize(
    ("lease", "consumed", "message"),
    [
        ([(1, 10, 20)], [(1, 11, 12)], "no prefix of its lease"),
        ([(1, 10, 20)], [(1, 10, 21)], "no prefix of its lease"),
        ([(1, 10, 20)], [(2, 10, 12)], "no prefix of its lease"),
        ([(1, 10, 20), (1, 30, 40)], [(1, 10, 20), (1, 31, 32)], "no prefix of its lease"),
        ([(1, 0, 20)], [(1, 0, 6)], "counted twice"),
        ([(1, 4, 6)], [(1, 4, 6)], r"sequences \[4, 5\) are counted twice"),
        ([(1, 95, 120)], [(1, 95, 120)], "ends beyond the 100 sequences"),
        ([(0, 1, 2)], [], "epochs count from 1"),
        ([(1, 5, 5)], [], "is empty"),
        ([[1, -1, 5]], [], "out of bounds"),
        ([[1, 0.0, 5]], [], "not a range"),
        ([[1, 0]], [], "not a range"),
        ([[1, 0, 5, 6]], [], "not a range"),
    ],
)
def test_a_report_that_would_count_wrongly_is_refused_whole(lease: list, consumed: list, message: str) -> None:
    ledger = trained(Ledger(), "A", [(1, 0, 5)])
    before = json.dumps(ledger.to_json())
    good = {"lease": [(1, 0, 8)], "consumed": [(1, 0, 8)]}
    with pytest.raises(LedgerError, match=message):
        ledger.commit({"B": good, "A": {"lease": lease, "consumed": consumed}}, {"A": 100, "B": 100})
    assert json.dumps(ledger.to_json()) == before


def test_a_prefix_may_be_divided_otherwise_than_its_lease() -> None:
    ledger = Ledger().commit({"A": {"lease": [(1, 0, 10), (2, 0, 10)], "consumed": [(1, 0, 4), (1, 4, 10), (2, 0, 1)]}})
    assert ledger.consumed("A") == [(1, 0, 10), (2, 0, 1)]


def test_the_same_report_twice_is_refused() -> None:
    report = {"A": {"lease": [(1, 0, 8)], "consumed": [(1, 0, 8)]}}
    with pytest.raises(LedgerError, match="counted twice"):
        Ledger().commit(report).commit(report)


def test_json_keeps_everything_and_compacts() -> None:
    ledger = trained(trained(Ledger(), "A", [(1, 0, 4)]), "A", [(1, 4, 8)]).rebalance([(1, 50, 60)], "B", "A")
    content = json.loads(json.dumps(ledger.to_json(["C"])))
    assert content["A"] == {"epoch": 1, "consumed": [[1, 0, 8]]}
    assert content["B"] == {"epoch": 1, "consumed": [], "moved": [[1, 50, 60, "A"]]}
    assert content["C"] == {"epoch": 1, "consumed": []}
    assert Ledger.from_json(content) == ledger


@pytest.mark.parametrize(
    "content",
    [
        {"A": {"epoch": 1}},
        {"A": []},
        {"A": {"consumed": [(1, 0, 5), (1, 4, 8)]}},
        {"A": {"consumed": [(1, 5, 2)]}},
        {"A": {"consumed": [], "moved": [(1, 0, 5)]}},
        {"A": {"consumed": [], "moved": [(1, 0, 5, "B"), (1, 3, 8, "C")]}},
    ],
)
def test_a_damaged_ledger_is_not_read(content: dict) -> None:
    with pytest.raises(LedgerError):
        Ledger.from_json(content)


def test_moved_text_belongs_to_one_site() -> None:
    ledger = trained(Ledger(), "A", [(1, 0, 10)]).rebalance([(1, 80, 100)], "A", "B")
    assert ledger.lease("A", 80, 100, "done") == [(1, 10, 80)]
    done = trained(ledger, "B", [(1, 0, 50)])
    lease = done.lease("B", 10, 50, "done")
    assert lease == [(1, 80, 90, "A")]
    with pytest.raises(LedgerError, match="is of B"):
        trained(done, "A", [(1, 80, 90)])
    after = trained(done, "B", lease)
    assert after.consumed("A") == [(1, 0, 10), (1, 80, 90)] and after.consumed("B") == [(1, 0, 50)]
    assert after.lease("B", 30, 50) == [(1, 90, 100, "A"), (2, 0, 20)]
    assert total(after.lease("B", 30, 50)) == 30
    with pytest.raises(LedgerError, match="trained on in part"):
        after.rebalance([(1, 85, 95)], "A", "C")
    back = after.rebalance([(1, 90, 95)], "A", "A").rebalance([(1, 95, 100)], "A", "C")
    assert back.lease("A", 100, 100, "done") == [(1, 10, 80), (1, 90, 95)]
    assert back.lease("C", 40, 30, "done") == [(1, 0, 30), (1, 95, 100, "A")]


def test_balance_gives_what_is_left_to_the_sites_that_will_train() -> None:
    totals = {"A": 1000, "B": 1000, "C": 1000}
    ledger = trained(trained(Ledger(), "A", [(1, 0, 900)]), "B", [(1, 0, 100)])
    after = balance(ledger, totals, {"A": 2.0, "B": 1.0, "C": 1.0}, multiple=4)
    left = {site: sum(span.size for span in after.free(site, 1, totals[site])) for site in totals}
    assert sum(left.values()) == 2000
    assert left == pytest.approx({"A": 1000, "B": 500, "C": 500}, abs=8)
    assert balance(after, totals, {"A": 2.0, "B": 1.0, "C": 1.0}, multiple=4) == after
    gone = balance(ledger, totals, {"A": 1.0, "B": 1.0, "C": 0.0}, multiple=4)
    assert sum(span.size for span in gone.free("C", 1, 1000)) < 4
    with pytest.raises(LedgerError, match="build their shards"):
        balance(ledger, {"A": 0}, {"A": 1.0})


def test_verification_against_the_parent() -> None:
    parent = trained(Ledger(), "A", [(1, 0, 4)])
    sites = {"A": [(1, 4, 8)], "B": [(1, 0, 4)]}
    child = trained(trained(parent, "A", [(1, 4, 8)]), "B", [(1, 0, 4)])
    child.verify_against(parent, sites)
    child.rebalance([(1, 90, 99)], "B", "A").verify_against(parent, sites)
    for wrong in (
        {"A": [(1, 4, 8)]},
        {"A": [(1, 4, 7)], "B": [(1, 0, 4)]},
        {"A": [(1, 2, 8)], "B": [(1, 0, 4)]},
        {"A": [(1, 4, 8), (1, 0, 4, "B")]},
    ):
        with pytest.raises(LedgerError):
            child.verify_against(parent, wrong)
    stolen = Ledger.from_json({"A": {"consumed": [(1, 0, 8)], "moved": [(1, 0, 4, "B")]}})
    with pytest.raises(LedgerError, match="after it was trained on"):
        stolen.verify_against(parent, {"A": [(1, 4, 8)]})


def test_summary_has_a_row_per_shard_set_and_pass() -> None:
    ledger = trained(trained(Ledger(), "A", [(1, 0, 10), (2, 0, 5)]), "B", [(1, 0, 5)])
    rows = summarise(ledger, 100)
    assert [(r["site"], r["epoch"], r["tokens"], r["share"]) for r in rows] == [
        ("A", 1, 1000, 0.5),
        ("A", 2, 500, 0.25),
        ("B", 1, 500, 0.25),
    ]


def test_prefix_arithmetic() -> None:
    lease = [(1, 0, 4), (2, 0, 4, "B")]
    assert take_prefix(lease, 6) == [(1, 0, 4), (2, 0, 2, "B")]
    assert drop_prefix(lease, 6) == [(2, 2, 4, "B")]
    assert take_prefix(lease, 0) == [] and drop_prefix(lease, 8) == []
    with pytest.raises(LedgerError, match="9 sequences are not a prefix of a lease of 8"):
        take_prefix(lease, 9)


def test_a_member_that_would_repeat_its_text_gets_what_others_have_not_reached() -> None:
    ledger, totals = trained(Ledger(), "A", [(1, 0, 8)]), {"A": 10, "B": 20, "C": 6}
    assert fresh_first(ledger, totals, {"A": 2, "B": 20}) == ledger
    after = fresh_first(ledger, totals, {"A": 5, "B": 4})
    assert after.lease("A", 5, 10) == [(1, 8, 10), (1, 3, 6, "C")], "of a site that does not train, its last"
    assert after.lease("B", 4, 20) == [(1, 0, 4)]
    every = fresh_first(ledger, totals, {"A": 30})
    assert every.lease("A", 30, 10) == [(1, 8, 10), (1, 0, 20, "B"), (1, 0, 6, "C"), (2, 0, 2)]
    # another site is in its second pass already: what is left of the first is still trained on before
    late = fresh_first(trained(trained(ledger, "C", [(1, 0, 6), (2, 0, 3)]), "A", [(1, 8, 10)]), totals, {"C": 4})
    assert late.lease("C", 4, 6) == [(1, 16, 20, "B")]


@given(st.lists(st.dictionaries(st.sampled_from("ABC"), st.integers(0, 9), min_size=1), max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_text_repeats_while_another_site_has_fresh_one(segments: list[dict[str, int]]) -> None:
    totals, ledger = {"A": 7, "B": 3, "C": 11}, Ledger()
    for wanted in segments:
        before = ledger
        ledger = fresh_first(ledger, totals, wanted)
        leases = {site: ledger.lease(site, count, totals[site]) for site, count in wanted.items()}
        ledger = ledger.commit({site: {"lease": lease, "consumed": lease} for site, lease in leases.items()}, totals)
        ledger.verify_against(before, leases)
        passes = [sum(b - a for site in totals for e, a, b in ledger.consumed(site) if e == n) for n in range(1, 7)]
        whole = sum(totals.values())
        assert all(count == whole for n, count in enumerate(passes) if any(passes[n + 1 :])), passes
