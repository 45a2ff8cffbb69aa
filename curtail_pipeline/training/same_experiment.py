"""Whether a trainer was started with the experiment that an order is of."""

import hashlib

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.storage.store import canonical_json


def require_same(stored: Experiment, key: str, mine: Experiment, site: str) -> None:
    """That the experiment under `key` is the one that the trainer of `site` was started with.

    Raises:
        TrainingError: training could differ.
    """
    wanted, own = _identity(stored), _identity(mine)
    if wanted != own:
        raise TrainingError(
            f"{key} is experiment {stored.name!r} with identity {wanted[:12]}, the trainer of site "
            f"{site} was started with {own[:12]}; restart the trainer"
        )


def _identity(experiment: Experiment) -> str:
    """Hash of all that training may depend on: traces lie elsewhere on each machine, and sites may be added."""
    identity = {key: value for key, value in experiment.identity().items() if key not in ("traces", "sites")}
    return hashlib.sha256(canonical_json(identity)).hexdigest()
