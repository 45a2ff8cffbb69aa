"""The ground floor: every section of an experiment file, validated.

Decided here: what can be set, its default and where that is from. Never what follows from a setting.
"""

from curtail_pipeline.settings.experiment import Experiment, load_experiment, parse_experiment, with_traces

__all__ = ["Experiment", "load_experiment", "parse_experiment", "with_traces"]
