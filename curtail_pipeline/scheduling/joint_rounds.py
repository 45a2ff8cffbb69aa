"""Which of the sites that could train share a round (`rounds.sync: paying`).

A round lasts until the slowest link has sent its update, for every member. In a round of length `r`, members do
`sum((r - load) * speed)` steps in `r + tail + merge` seconds; with the sites in order of what their links take, the
best set is a prefix, the tail of a set being that of its slowest member.
"""

from collections.abc import Sequence

from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.sites import Site


def paying(experiment: Experiment, sites: Sequence[Site]) -> list[Site]:
    """Those of the sites that together do the most steps per second, in the given order; one at least."""
    length = experiment.rounds.length_s
    overheads = {site.name: experiment.overheads_of(site) for site in sites}
    rated = sorted(sites, key=lambda site: overheads[site.name].round_load_s + overheads[site.name].round_tail_s)
    best, best_rate = list(rated[:1]), 0.0
    steps = tail = merge = 0.0
    for count, site in enumerate(rated, 1):
        of = overheads[site.name]
        steps += max(0.0, length - of.round_load_s) * site.steps_per_s
        tail = max(tail, of.round_tail_single_s if count == 1 else of.round_tail_s)
        merge = max(merge, of.outer_step_s)
        rate = steps / (length + tail + merge)
        if rate > best_rate:
            best, best_rate = rated[:count], rate
    names = {site.name for site in best}
    return [site for site in sites if site.name in names]
