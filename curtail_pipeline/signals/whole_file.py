"""All of a trace file as one table, for commands that simulate without ingesting."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.experiment import Experiment, with_traces
from curtail_pipeline.settings.rule_settings import rule_of
from curtail_pipeline.signals.checks import CheckOutcome
from curtail_pipeline.signals.provider import make_provider
from curtail_pipeline.signals.recorded_checks import check_recording


@dataclass(frozen=True)
class WholeFile:
    """The traces of an experiment's regions, and what the checks say of them."""

    traces: pl.DataFrame
    checks: list[CheckOutcome]


def read_all(path: Path, experiment: Experiment, reading: Mapping[str, object] | None = None) -> WholeFile:
    """The traces of the experiment's regions over the file's whole time.

    A file is read as the experiment's own traces are where those are a file, else as g/kWh in UTC.

    Args:
        reading: keys of the `traces` section that are set for this file.

    Raises:
        SettingsError: a key's value that cannot be.
        TraceError: the file cannot be read, has not all regions, or has values that cannot be in its unit.
    """
    provider = make_provider(with_traces(experiment, path, reading).traces)
    span, known = provider.span(), provider.regions() or []
    missing = [region for region in experiment.regions if region not in known]
    if missing or span is None:
        raise TraceError(
            f"{path} has no region {missing[0]!r}; it has {', '.join(known)}" if missing else f"{path} is empty"
        )
    for site in experiment.sites:
        for signal in rule_of(experiment.policy, site.region, experiment.rules).signals:
            if signal.kind not in provider.kinds(site.region):
                raise TraceError(
                    f"{path} has no {signal.kind} of region {site.region!r}, by which the windows of site "
                    f"{site.name!r} are decided; it has {', '.join(provider.kinds(site.region))}. Declare what a "
                    "column holds with traces.kind or traces.columns, or decide by another kind (policy.parameters, "
                    "rules)"
                )
    parts = [provider.ingest(region, *span, kind) for region in experiment.regions for kind in provider.kinds(region)]
    return WholeFile(pl.concat(part.trace for part in parts), check_recording(parts, experiment.checks))
