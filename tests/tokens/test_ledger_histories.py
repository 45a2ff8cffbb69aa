"""Random histories of a training job: along every lineage each sequence counts once, and none is skipped.

Sites join and leave, rounds and whole segments are lost, a segment is killed before or after its commit, reports come
twice or a round late, shards run out, text moves between sites, and old segments are replayed. A plain set of
(shard set, pass, position) is the model that the ledger is held to.
"""

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curtail_pipeline.errors import LedgerError
from curtail_pipeline.tokens.balance import balance
from curtail_pipeline.tokens.ledger import Ledger
from curtail_pipeline.tokens.ranges import drop_prefix, parse_ranges, take_prefix, total

SITES = ("A", "B", "C")
STEP = 4
LENGTH = 16


@dataclass
class Checkpoint:
    ledger: Ledger
    tokens: int
    trained: frozenset
    parent: "Checkpoint | None" = None
    sites: dict = field(default_factory=dict)
    rounds: list = field(default_factory=list)


def positions(ranges: list, site: str) -> list:
    return [(s.owner, s.epoch, i) for s in parse_ranges(ranges, site) for i in range(s.start, s.stop)]


class Job:
    """A coordinator that plans, loses, commits and replays segments, as drawn."""

    def __init__(self, draw, totals: dict, exhausted: str) -> None:
        self.draw, self.totals, self.exhausted = draw, totals, exhausted
        self.lineage = [Checkpoint(Ledger(), 0, frozenset())]

    def run_segment(self) -> None:
        parent = self.lineage[-1]
        ledger, rounds = parent.ledger, []
        members = self.draw(st.lists(st.sampled_from(SITES), min_size=1, max_size=3, unique=True))
        if self.draw(st.booleans()):
            weights = {site: self.draw(st.sampled_from([0.0, 1.0, 3.0])) for site in SITES}
            ledger = balance(ledger, self.totals, weights, STEP)
        n_rounds = self.draw(st.integers(1, 3))
        leases = {site: self.lease(ledger, site, n_rounds * self.draw(st.integers(1, 2))) for site in members}
        self.check_leases(parent, ledger, leases)
        late = None
        for _ in range(n_rounds):
            granted, reports = {}, {}
            for site in members:
                size = min(self.draw(st.integers(1, 2)) * STEP, total(leases[site]))
                granted[site] = take_prefix(leases[site], size)
                leases[site] = drop_prefix(leases[site], size)
                steps = self.draw(st.integers(0, size // STEP))  # it leaves, or is lost with nothing counted
                reports[site] = {"lease": granted[site], "consumed": take_prefix(granted[site], steps * STEP)}
            if late and total(late[1]["consumed"]) and late[0] in granted:
                self.refuse(ledger, late[0], {"lease": granted[late[0]], "consumed": late[1]["consumed"]})
            site = members[0]
            late = (site, {"lease": granted[site], "consumed": granted[site]})
            ledger = ledger.commit(reports, self.totals)
            if total(reports[site]["consumed"]):
                self.refuse(ledger, site, reports[site])  # delivered twice
            rounds.append(reports)
        fate = self.draw(st.sampled_from(["committed", "killed before the commit", "killed after the commit"]))
        if fate == "killed before the commit":
            return  # the next segment starts from the same parent
        sites: dict = {}
        for reports in rounds:
            for site, report in reports.items():
                sites.setdefault(site, []).extend(report["consumed"])
        count = sum(total(consumed) for consumed in sites.values())
        new = [p for site, consumed in sites.items() for p in positions(consumed, site)]
        assert len(new) == len(set(new)) and not parent.trained & set(new)
        ledger = Ledger.from_json(ledger.to_json())
        child = Checkpoint(ledger, parent.tokens + count * LENGTH, parent.trained | set(new), parent, sites, rounds)
        self.lineage.append(child)
        self.check(child)

    def lease(self, ledger: Ledger, site: str, steps: int) -> list:
        return ledger.lease(site, steps * STEP, self.totals[site], self.exhausted, STEP)

    def refuse(self, ledger: Ledger, site: str, report: dict) -> None:
        with pytest.raises(LedgerError):
            ledger.commit({site: report}, self.totals)

    def check_leases(self, parent: Checkpoint, ledger: Ledger, leases: dict) -> None:
        """Leases of the members are disjoint, whole steps, untouched, and begin with the first that is untouched."""
        seen = set(parent.trained)
        for site, lease in leases.items():
            assert total(lease) % STEP == 0
            wanted = positions(lease, site)
            assert seen.isdisjoint(wanted) and len(set(wanted)) == len(wanted)
            seen |= set(wanted)
            if lease and not any(p[0] != site for p in wanted) and not self.moved(ledger):
                epoch, first = wanted[0][1:]
                assert all((site, epoch, i) in parent.trained for i in range(first))
                assert all((site, e, i) in parent.trained for e in range(1, epoch) for i in range(self.totals[site]))

    def moved(self, ledger: Ledger) -> list:
        return [m for entry in ledger.to_json().values() for m in entry.get("moved", ())]

    def check(self, child: Checkpoint) -> None:
        assert child.parent is not None
        child.ledger.verify_against(child.parent.ledger, child.sites)
        shown = [p for site in SITES for p in positions(child.ledger.consumed(site), site)]
        assert len(shown) == len(set(shown)) and set(shown) == child.trained
        assert child.ledger.tokens(LENGTH) == child.tokens == len(child.trained) * LENGTH
        assert all(i < self.totals[site] for site, _, i in child.trained)

    def replay(self) -> None:
        """What was realised, again from its parent, gives the same ledger; the lineage stays as it is."""
        child = self.draw(st.sampled_from(self.lineage))
        if child.parent is None:
            return
        ledger = Ledger(child.parent.ledger._consumed, child.ledger._moved)
        for reports in child.rounds:
            ledger = ledger.commit(reports, self.totals)
        assert ledger == child.ledger

    def drain(self) -> None:
        """Without further losses, the first pass over every shard set is completed and nothing is left out."""
        ledger, trained = self.lineage[-1].ledger, set(self.lineage[-1].trained)
        for site in SITES:
            lease = ledger.lease(site, 1_000, self.totals[site], "done")
            trained |= set(positions(lease, site))
            ledger = ledger.commit({site: {"lease": lease, "consumed": lease}}, self.totals)
        first_pass = {(site, 1, i) for site in SITES for i in range(self.totals[site])}
        assert first_pass <= trained
        assert ledger.sequences() == len(trained)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.data())
def test_every_sequence_counts_once_along_every_lineage(data: st.DataObject) -> None:
    totals = {site: data.draw(st.integers(5, 24)) for site in SITES}
    job = Job(data.draw, totals, data.draw(st.sampled_from(["next_epoch", "done"])))
    for _ in range(data.draw(st.integers(1, 5))):
        if data.draw(st.integers(0, 4)) == 0:
            job.replay()
        else:
            job.run_segment()
    job.drain()
