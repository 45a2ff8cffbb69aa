"""How long rounds are when the experiment leaves it open (`rounds.round_s: auto`).

A round costs its overhead `o` (load, tail, merge, and moving weights over the sites' links); a longer one is rarer, but
a site that joins waits for half of it on average. Over a window of length `w` that is `o w / r + r / 2`, least at
`r = sqrt(2 o w)`, the rule by which checkpoints are spaced (Young, "A first order approximation to the optimum
checkpoint interval", CACM 17(9), 1974). It is bounded by how far sites may drift apart, and from below by a round that
trains most of its time. Where sites need not wait for each other (`sync: paying`) those with the longest rounds are
left out as long as the others then do more steps in a window than all together.
"""

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np

from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.times import SECOND, Micros

LEAST_WINDOWS = 5
"""With fewer windows in the record before the start, `rounds.window_s` says how long one is."""
LEAST_TRAINED = 0.5
"""No round is so short that it trains less than this share of its time, whatever the bound."""


def with_round_length(experiment: Experiment, windows: Mapping[str, tuple[Micros, Micros]], start: int) -> Experiment:
    """The experiment with a length of its rounds in seconds; unchanged where it gives one.

    Args:
        windows: starts and ends per site, microseconds; only those that had ended by the start count, so that nothing
            depends on what comes later.
        start: microseconds.
    """
    if experiment.rounds.round_s != "auto":
        return experiment
    window_s = _window_s(experiment, windows, start)
    rounds = [(sites, _length_s(experiment, sites, window_s)) for sites in _sharing(experiment)]
    _, seconds = max(rounds, key=lambda found: _steps(experiment, found[0], found[1], window_s))
    return experiment.model_copy(update={"rounds": experiment.rounds.model_copy(update={"round_s": seconds})})


def _sharing(experiment: Experiment) -> list[list[Site]]:
    """Who may share rounds: all, or, where sites need not wait for others, those that take the shortest of them too."""
    sites = sorted(experiment.sites, key=lambda site: overhead_s(experiment, [site]))
    least = 1 if experiment.rounds.sync == "paying" else len(sites)
    return [sites[:count] for count in range(len(sites), least - 1, -1)]


def _steps(experiment: Experiment, sites: Sequence[Site], length_s: float, window_s: float) -> float:
    """Steps that sites do in a window which all have, in rounds of this length."""
    lost = overhead_s(experiment, sites) * window_s / length_s + length_s / 2
    return sum(site.steps_per_s for site in sites) * max(0.0, window_s - lost)


def overhead_s(experiment: Experiment, sites: Sequence[Site]) -> float:
    """What a round of these sites takes beside training, s."""
    many = len(sites) > 1
    overheads = [experiment.overheads_of(site) for site in sites]
    load = max(of.round_load_s for of in overheads)
    tail = max(of.round_tail_s if many else of.round_tail_single_s for of in overheads)
    return load + tail + max(of.outer_step_s for of in overheads)


def _length_s(experiment: Experiment, sites: Sequence[Site], window_s: float) -> float:
    overhead, rounds = overhead_s(experiment, sites), experiment.rounds
    step = max(1 / site.steps_per_s for site in sites)
    least = max(overhead / (1 - LEAST_TRAINED), overhead + step)
    best = min(sqrt(2 * overhead * window_s), rounds.staleness_s)
    return float(np.ceil(max(best, least)))


def _window_s(experiment: Experiment, windows: Mapping[str, tuple[Micros, Micros]], start: int) -> float:
    """The median length of the windows that had ended by the start."""
    known = np.concatenate([(ends - starts)[ends <= start] for starts, ends in windows.values()])
    return float(np.median(known)) / SECOND if len(known) >= LEAST_WINDOWS else experiment.rounds.window_s
