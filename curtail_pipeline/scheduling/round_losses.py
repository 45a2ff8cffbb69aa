"""What rounds take of the sites' time, as far as a plan by slots reckons with it; its walk knows them exactly."""

from collections.abc import Sequence
from dataclasses import dataclass

from curtail_pipeline.scheduling.joint_rounds import paying
from curtail_pipeline.scheduling.policies import lost_at_start_us
from curtail_pipeline.scheduling.timing import step_us
from curtail_pipeline.scheduling.view import View
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.times import duration_us


@dataclass(frozen=True)
class RoundLosses:
    """Of rounds in which all sites train but those that keep the others waiting for more than they add, microseconds.

    Those train alone.
    """

    round_us: int
    load_us: int
    merge_us: int
    """From the last step to the round's end."""
    usable: tuple[float, ...]
    """Share of a round in which a member trains, per site; 0 where it makes no step in one."""
    starts: tuple[int, ...]
    """Training lost by a start, per site: its own, and that of the others, whose round it ends early."""
    resumes: tuple[int, ...]
    """The same by going on after a hold: half of a round of the others is waited for."""

    @classmethod
    def of(cls, view: View) -> "RoundLosses":
        """Of a view's sites."""
        experiment, sites = view.experiment, view.sites
        overheads = [experiment.overheads_of(site) for site in sites]
        round_us, many = duration_us(experiment.rounds.length_s), len(sites) > 1
        together = {site.name for site in paying(experiment, sites)}
        joint = [site.name in together for site in sites]
        members = [of for of, shares in zip(overheads, joint, strict=True) if shares]
        load_us, merge_us = max(map(_load_us, members)), _merge_us(members, many=many)
        usable = []
        for site, of, shares in zip(sites, overheads, joint, strict=True):
            step, merge = step_us(site), merge_us if shares else _merge_us([of], many=False)
            usable.append(max(0, round_us - _load_us(of)) // step * step / (round_us + merge))
        shared = (len(members) - 1) * (merge_us + load_us)
        return cls(
            round_us,
            load_us,
            merge_us,
            tuple(usable),
            tuple(lost_at_start_us(of) + shared * shares for of, shares in zip(overheads, joint, strict=True)),
            tuple(_load_us(of) + (round_us // 2 if many else 0) for of in overheads),
        )


def sites_without_steps(experiment: Experiment) -> list[str]:
    """What to tell of each site that makes no step in a round with others, and has them wait for it."""
    round_s, found = experiment.rounds.length_s, []
    for site in experiment.sites if len(experiment.sites) > 1 and experiment.rounds.sync == "all" else ():
        load_s = experiment.overheads_of(site).round_load_s
        if duration_us(round_s - load_s) < step_us(site):
            found.append(
                f"{site.name} makes no step in a round with others, which wait for it: loading, with what comes by its "
                f"link, takes {load_s:.0f} s of rounds.round_s {round_s:.0f}; give longer rounds (round_s: auto), less "
                "to move (update_mb and codecs) or sync: paying"
            )
    return found


def _load_us(of: Overheads) -> int:
    return duration_us(of.round_load_s)


def _merge_us(members: Sequence[Overheads], *, many: bool) -> int:
    tail = max(duration_us(of.round_tail_s if many else of.round_tail_single_s) for of in members)
    return tail + max(duration_us(of.outer_step_s) for of in members)
