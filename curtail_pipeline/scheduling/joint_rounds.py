"""Which of the sites that could train share a round (`rounds.sync: paying`).

A round lasts until the slowest link has sent its update, for every member. In a round of length `r`, members do
`sum((r - load) * speed)` steps in `r + tail + merge` seconds, tail and merge being the longest of any member: the best
set is a single site, or all whose tail and merge are no longer than those of some sites.
"""

from collections.abc import Iterator, Sequence

from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.settings.sites import Site

_Member = tuple[Site, Overheads]


def paying(experiment: Experiment, sites: Sequence[Site]) -> list[Site]:
    """Those of the sites that together do the most steps per second, in the given order; one at least."""
    length = experiment.rounds.length_s
    best = max(
        _sets([(site, experiment.overheads_of(site)) for site in sites], length),
        key=lambda members: _steps_per_s(members, length),
    )
    return [site for site, _ in best]


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
