"""Which of the sites that could train share a round (`rounds.sync: paying`, and plans).

A round lasts until the slowest link has sent its update, for every member. In a round of length `r`, members do
`sum((r - load) * speed)` steps in `r + tail + merge` seconds, tail and merge being the longest of any member: the best
set is a single site, or all whose tail and merge are no longer than those of some sites.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from curtail_pipeline.scheduling.stays import Plan, Span, Stay, known, touching
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.settings.sites import Site

_Member = tuple[Site, Overheads]


def waits(experiment: Experiment) -> bool:
    """Whether some site's rounds take longer than another's, so that sites may wait for each other."""
    of = [experiment.overheads_of(site) for site in experiment.sites]
    return len({(each.round_load_s, each.round_tail_s, each.outer_step_s) for each in of}) > 1


def paying(experiment: Experiment, sites: Sequence[Site]) -> list[Site]:
    """Those of the sites that together do the most steps per second, in the given order; one at least."""
    members = [(site, experiment.overheads_of(site)) for site in sites]
    return [site for site, _ in _best(members, experiment.rounds.length_s)]


def _best(sites: Sequence[_Member], length: float) -> Sequence[_Member]:
    return max(_sets(sites, length), key=lambda members: _steps_per_s(members, length))


def _sets(sites: Sequence[_Member], length: float) -> Iterator[list[_Member]]:
    yield from ([site] for site in sites)
    useful = [(site, of) for site, of in sites if of.round_load_s < length]
    for tail in sorted({of.round_tail_s for _, of in useful}):
        for merge in sorted({of.outer_step_s for _, of in useful}):
            members = [(site, of) for site, of in useful if of.round_tail_s <= tail and of.outer_step_s <= merge]
            if len(members) > 1:
                yield members


def _steps_per_s(members: Sequence[_Member], length: float) -> float:
    steps = sum(max(0.0, length - of.round_load_s) * site.steps_per_s for site, of in members)
    tail = max(of.round_tail_s if len(members) > 1 else of.round_tail_single_s for _, of in members)
    return steps / (length + tail + max(of.outer_step_s for _, of in members))


class WithoutWaiting:
    """Takes out of plans what sites train while they cost the others of the round more than they add."""

    def __init__(self, experiment: Experiment) -> None:
        self.sites = [(site, experiment.overheads_of(site)) for site in experiment.sites]
        self.numbers = {site.name: i for i, site in enumerate(experiment.sites)}
        self.length = experiment.rounds.length_s
        self._members: dict[frozenset[int], frozenset[int]] = {}

    def held(self, plan: Plan) -> Plan:
        """The plan in which such sites hold meanwhile: what `rounds.sync: paying` does."""
        return tuple(
            tuple(stay._replace(train=tuple(_outside(stay.train, low, high))) for stay in stays)
            for stays, (low, high) in zip(plan, self._waiting(plan), strict=True)
        )

    def off(self, plan: Plan, since: int) -> Plan:
        """The same, with sites up only from their first step to their last; stays that began by `since` are kept."""
        return tuple(
            tuple(stay if stay.up <= since else _shortest(stay) for stay in stays if stay.train or stay.up <= since)
            for stays in self.held(plan)
        )

    def _waiting(self, plan: Plan) -> list[tuple[list[int], list[int]]]:
        """Per site, begins and ends of when it would keep others waiting."""
        found: list[list[Span]] = [[] for _ in plan]
        changes = sorted(
            (us, begins, i)
            for i, stays in enumerate(plan)
            for stay in stays
            for low, high in stay.train
            for us, begins in ((low, True), (high, False))
        )
        training: set[int] = set()
        before = 0
        for us, begins, i in changes:
            if us > before and len(training) > 1:
                for j in training - self._paying(frozenset(training)):
                    found[j].append((before, us))
            before = us
            (training.add if begins else training.discard)(i)
        joined = [touching(spans) for spans in found]
        return [([low for low, _ in spans], [high for _, high in spans]) for spans in joined]

    def _paying(self, training: frozenset[int]) -> frozenset[int]:
        members = self._members.get(training)
        if members is None:
            best = _best([self.sites[i] for i in sorted(training)], self.length)
            members = self._members[training] = frozenset(self.numbers[site.name] for site, _ in best)
        return members


def _outside(train: Sequence[Span], lows: list[int], highs: list[int]) -> Sequence[Span]:
    """What of the stretches is in none of the others, given by ascending begins and ends."""
    if not train:
        return train
    first, last = bisect_right(highs, train[0][0]), bisect_left(lows, train[-1][1])
    return known(train, list(zip(lows[first:last], highs[first:last], strict=True)))


def _shortest(stay: Stay) -> Stay:
    """As long as it takes for what it trains."""
    later = stay.train[0][0] - stay.ready
    return stay._replace(up=stay.up + later, ready=stay.train[0][0], down=stay.train[-1][1])
