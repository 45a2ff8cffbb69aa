"""The learner of a site: on its device, or over all of its devices."""

import logging

import torch

from curtail_pipeline.settings.sites import Site
from curtail_pipeline.settings.training_settings import TrainingSettings
from curtail_pipeline.training.leading_ranks import LeadingRanks
from curtail_pipeline.training.learner import Learner, make_learner
from curtail_pipeline.training.memory import require_fit
from curtail_pipeline.training.presets import read_config
from curtail_pipeline.training.rank_commands import Build
from curtail_pipeline.training.ranks import Ranks

log = logging.getLogger(__name__)


def build_learner(
    config: bytes,
    source: str,
    settings: TrainingSettings,
    site: Site,
    devices: list[torch.device],
    ranks: Ranks | None = None,
) -> Learner:
    """A learner of the model that `config` describes, whose weights are yet to be loaded.

    Args:
        source: names the config in errors.
        devices: of the site (`devices.devices_of`).
        ranks: of the learner before, whose processes go on where they can.

    Raises:
        TrainingError: not such a config, a model that does not fit, or a process that does not start.
    """
    shape = read_config(config, source)
    fit = require_fit(shape, settings, devices[0], len(devices), site.parallel)
    if ranks is None or ranks.lost:
        ranks = LeadingRanks(devices) if len(devices) > 1 else Ranks(devices[0])
    log.info("a step takes %s%s", fit.memory, f" on each of {ranks.size} devices" if ranks.size > 1 else "")
    order = Build(config=config.decode(), settings=settings, sharded=fit.sharded, threads=site.threads)
    try:
        with ranks.together(order):
            learner = make_learner(shape, settings, ranks, fit.sharded)
        if ranks.size > 1:  # settles in which order DDP adds gradients up
            learner.warm_up()
    except BaseException:
        ranks.close()
        raise
    return learner
