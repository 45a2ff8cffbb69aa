"""When each site's grid counts as curtailed: its rule's thresholds without delays, for accounts and batteries.

Windows say when a site may train, an exit delay included; energy of that delay is not curtailed power.
"""

from datetime import datetime, timedelta

import polars as pl

from curtail_pipeline.scheduling.view import SiteWindows, deciding_signals, site_windows
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.rule_settings import RuleSettings, SignalRule, rule_of
from curtail_pipeline.windows.rules import derive_windows, recorded_cadences


def curtailed_stretches(experiment: Experiment, traces: pl.DataFrame) -> dict[str, SiteWindows]:
    """Per site, when its signal counts as curtailed by the thresholds of the experiment's rule.

    Args:
        traces: normalised trace rows of the experiment's regions, not empty.
    """
    regions = {site.region for site in experiment.sites}
    rules = {region: _plain(rule_of(experiment.policy, region, experiment.rules)) for region in regions}
    settings = experiment.model_copy(update={"rules": rules, "policy": PolicySettings(name="threshold")})
    table = windows_of_record(settings, traces, settings.policy)
    return site_windows(settings, table, deciding_signals(settings, traces))


def windows_of_record(run: Experiment, traces: pl.DataFrame, policy: PolicySettings) -> pl.DataFrame:
    """The windows of a whole trace, one long cadence beyond its last stamp, so that the last value is read."""
    first, last = traces["time"].min(), traces["time"].max()
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    table, _ = derive_windows(
        traces,
        run.sites,
        policy,
        start=first,
        end=last + timedelta(hours=1),
        rules=run.rules,
        cadence_s=recorded_cadences(traces),
    )
    return table


def _plain(rule: RuleSettings) -> RuleSettings:
    def undelayed(signal: SignalRule) -> SignalRule:
        return signal.model_copy(update={"enter": signal.enter_at, "exit_delay_s": 0.0, "exit": None})

    if rule.any_of or rule.all_of:
        lists = {name: [undelayed(part) for part in getattr(rule, name)] for name in ("any_of", "all_of")}
        return rule.model_copy(update={**lists, "min_duration_s": 0.0, "start_up_s": 0.0})
    update = {"enter": rule.enter_at, "exit": None, "exit_delay_s": 0.0, "min_duration_s": 0.0, "start_up_s": 0.0}
    return rule.model_copy(update=update)
