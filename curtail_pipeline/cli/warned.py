"""What is said of an experiment before it runs."""

import sys

from curtail_pipeline.scheduling.round_losses import sites_without_steps
from curtail_pipeline.settings.experiment import Experiment


def warn_rounds(experiment: Experiment) -> None:
    """A line on standard error for each site that trains nothing in rounds with others."""
    for text in sites_without_steps(experiment):
        print(f"curtail: warning: {text}", file=sys.stderr, flush=True)
