"""What a decision is made from: settings, signals, windows and forecasts, and how far the job is."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, TypeVar, cast

import numpy as np
import polars as pl
from pydantic import ConfigDict

from curtail_pipeline.emissions.battery import read_on_site
from curtail_pipeline.errors import PolicyError, SettingsError, TraceError
from curtail_pipeline.scheduling.predictors import Forecast, SeasonalForecast, TableForecast, issued_forecasts
from curtail_pipeline.scheduling.round_length import with_round_length
from curtail_pipeline.scheduling.timeline import Timeline
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.rule_settings import rule_of
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.signals.held import Signal, read_signals
from curtail_pipeline.times import FOREVER, SECOND, Micros, from_us, iso, micros_of, to_us

T = TypeVar("T")

State = Literal["train", "warm", "off"]


@dataclass(frozen=True)
class SiteDecision:
    """What one site should do, why, and since when."""

    __pydantic_config__ = ConfigDict(extra="forbid")
    """Where it is part of a message."""
    state: State
    reason: str
    since: datetime
    ready: datetime | None = None
    """When its last start-up is complete (it may lie ahead); None while it was never started."""


@dataclass(frozen=True)
class Job:
    """How far the training job is."""

    steps_done: int
    steps_total: int
    started: datetime
    deadline: datetime | None = None
    previous: Mapping[str, SiteDecision] = field(default_factory=dict)
    """The decision in force until now, site by site. Policies that plan ahead need it to know which sites are up; the
    others ignore it."""
    round_started: datetime | None = None
    """When the round in progress began, where one is: a policy that plans knows then when its merge is due."""

    @property
    def steps_left(self) -> int:
        return max(0, self.steps_total - self.steps_done)


@dataclass(frozen=True)
class SiteWindows:
    """One site's windows as arrays, ascending; an open one ends at `FOREVER`."""

    start: Micros
    end: Micros
    opened_by: list[str]
    closed_by: list[str]

    @classmethod
    def none(cls) -> "SiteWindows":
        empty = np.empty(0, dtype=np.int64)
        return cls(empty, empty, [], [])


class View:
    """All that a decision may depend on. Build it with `View.build`; it is never changed afterwards."""

    def __init__(
        self,
        experiment: Experiment,
        signals: Mapping[str, Signal],
        windows: Mapping[str, SiteWindows],
        forecasts: Forecast | None = None,
        as_of: datetime | None = None,
        prices: Mapping[str, Signal] | None = None,
        end: datetime | None = None,
        on_site: Mapping[str, Signal] | None = None,
        cadence_us: int | None = None,
        deciding: Mapping[str, Signal] | None = None,
    ) -> None:
        started = experiment.clock.start
        self.start_us = -FOREVER if started is None else to_us(started)
        """Before it nothing runs: a site whose window is open by then starts up only then."""
        experiment = self.experiment = with_round_length(
            experiment, {name: (part.start, part.end) for name, part in windows.items()}, self.start_us
        )
        self.sites: tuple[Site, ...] = tuple(experiment.sites)
        self.signals = signals
        self.deciding: Mapping[str, Signal] = {**signals, **(deciding or {})}
        """`deciding_signals`: how long windows can be decided, whatever grams are counted by."""
        self.prices: dict[str, Signal] = dict(prices or {})
        """Price per region (currency/MWh), for policies that spend money."""
        self.on_site: dict[str, Signal] = dict(on_site or {})
        """On-site generation per site, kW."""
        self.windows = dict(windows)
        self.forecasts = forecasts
        self.as_of = as_of
        self.rivals: tuple[tuple[Timeline, ...], ...] = ()
        """What other policies would do over the whole record, for a planner that knows it: per policy, per site."""
        self.away: dict[str, str] = {}
        """Sites that cannot take part, and why."""
        self._cadence_us = cadence_us
        self._made: dict[Callable[[View], object], object] = {}
        for site in self.sites:
            if site.steps_per_s * experiment.rounds.length_s < 1:
                raise SettingsError(
                    f"site {site.name!r} makes no step in a round: {site.steps_per_s} steps/s in rounds of "
                    f"{experiment.rounds.length_s} s; raise rounds.round_s above {1 / site.steps_per_s:.0f} s"
                )
        if as_of is None:
            known = [*signals.values(), *self.deciding.values()]
            ends = [to_us(end)] if end is not None else [signal.end for signal in known]
            self._end: int | None = max(ends, default=0)
        else:
            self._end = None

    @classmethod
    def build(
        cls,
        experiment: Experiment,
        traces: pl.DataFrame,
        windows: pl.DataFrame,
        forecasts: Forecast | pl.DataFrame | Callable[[Mapping[str, Signal]], Forecast] | None = None,
        as_of: datetime | None = None,
    ) -> "View":
        """Arrays from tables.

        Args:
            traces: normalised trace rows of every region of the experiment (time, region, value, kind, ...).
            windows: rows of `derive_windows` for the experiment's policy.
            forecasts: what policies that look ahead may ask: a forecast, a table of recorded ones (issued_at, target,
                region, value), or what makes a forecast of the signals. Without any they take the seasonal-naive one.
            as_of: give it for a live decision: nothing after it is used, the end of the signal is no error, and a site
                whose signal is too old is off. Without it the whole record is known and deciding beyond it is refused.

        Raises:
            TraceError: without `as_of`, a region of a site has no values at all; a site's generation can't be read.
        """
        if as_of is not None:
            traces = traces.filter(pl.col("time") <= as_of)
            windows = windows.filter(pl.col("start") <= as_of).with_columns(
                closed_by=pl.when(pl.col("end") <= as_of).then(pl.col("closed_by")),
                end=pl.when(pl.col("end") <= as_of).then(pl.col("end")),
            )
        signals = read_signals(traces, max_signal_ages(experiment))
        missing = [site.region for site in experiment.sites if site.region not in signals]
        if missing and as_of is None:
            known = ", ".join(sorted(signals)) or "none"
            raise TraceError(
                f"no signal for region {missing[0]!r}: the traces have {known}; add its trace or remove the site"
            )
        deciding = deciding_signals(experiment, traces)
        tables = site_windows(experiment, windows, {**signals, **deciding})
        if isinstance(forecasts, pl.DataFrame):
            if as_of is not None:
                forecasts = forecasts.filter(pl.col("issued_at") <= as_of)
            forecasts = TableForecast(issued_forecasts(forecasts), SeasonalForecast(signals))
        elif callable(forecasts):
            forecasts = forecasts(signals)
        prices = traces.filter(pl.col("kind") == "price")
        money = read_signals(prices) if len(prices) else None
        own = on_site_of(experiment)
        return cls(experiment, signals, tables, forecasts, as_of, money, on_site=own, deciding=deciding)

    def without(self, away: Mapping[str, str]) -> "View":
        """The same, but for sites that cannot take part, with why: as if their windows were closed."""
        if not away:
            return self
        other = copy.copy(self)
        other.windows = {**self.windows, **dict.fromkeys(away, SiteWindows.none())}
        other.away = dict(away)
        other._made = {}
        return other

    def once(self, make: "Callable[[View], T]") -> T:
        """What `make` makes of this view, made the first time: a view never changes."""
        if make not in self._made:
            self._made[make] = make(self)
        return cast(T, self._made[make])

    def cadence_us(self, region: str) -> int | None:
        """Time between the values of a region's signal; None when it has none."""
        if self._cadence_us is not None:
            return self._cadence_us
        signal = self.signals.get(region)
        return None if signal is None else signal.cadence_us

    @property
    def end_us(self) -> int:
        """End of the recorded signal; `FOREVER` in a live view."""
        return FOREVER if self._end is None else self._end

    @property
    def end(self) -> datetime:
        """End of the recorded signal: the last value's own step.

        Raises:
            PolicyError: a live view has none.
        """
        if self._end is None:
            raise PolicyError("a live view has no end; only a recorded trace has one")
        return from_us(self._end)

    def stale_reason(self, site: Site, us: int) -> str | None:
        """Why the site's signal can't be decided on at `us`, in a live view; None when it can.

        In a recorded view the windows say all: they close where the signal is missing or ends.
        """
        if self.as_of is None:
            return None
        signal = self.deciding.get(site.region)
        if signal is None:
            return f"no signal for region {site.region}"
        if us >= signal.valid_until:
            last = iso(from_us(int(signal.times[-1])))
            return f"signal older than {signal.max_age_us / SECOND:.0f} s: last value of {site.region} at {last}"
        return None


def on_site_of(experiment: Experiment) -> dict[str, Signal]:
    """On-site generation per site, kW.

    Raises:
        TraceError: a site's generation can't be read.
    """
    return {site.name: read_on_site(site.on_site) for site in experiment.sites if site.on_site is not None}


def max_signal_ages(experiment: Experiment) -> dict[str, float | None]:
    """Per region: how old (s) a value may be that is decided on and accounted with; None leaves it to the cadence.

    The longest of the region's rule: a window may stand on that signal alone.
    """
    found: dict[str, float | None] = {}
    for region in experiment.regions:
        ages = [signal.max_signal_age_s for signal in rule_of(experiment.policy, region, experiment.rules).signals]
        given = [age for age in ages if age is not None]
        found[region] = max(given) if len(given) == len(ages) else None
    return found


def deciding_signals(experiment: Experiment, traces: pl.DataFrame) -> dict[str, Signal]:
    """By region, the signal of its rule that says until when its windows can be decided: the one that ends last, and
    first where the rule needs all of them. Grams may be counted by another, which ends elsewhere.

    Args:
        traces: normalised trace rows.
    """
    found: dict[str, Signal] = {}
    for region in dict.fromkeys(site.region for site in experiment.sites):
        rule = rule_of(experiment.policy, region, experiment.rules)
        own = traces.filter(pl.col("region") == region)
        known = [
            signal
            for part in rule.signals
            for signal in read_signals(own.filter(kind=part.kind), {region: part.max_signal_age_s}).values()
        ]
        if known:
            choose = min if rule.needs_all else max
            found[region] = choose(known, key=lambda signal: signal.valid_until)
    return found


def site_windows(
    experiment: Experiment, table: pl.DataFrame, signals: Mapping[str, Signal] | None = None
) -> dict[str, SiteWindows]:
    """A windows table as arrays per site of the experiment.

    Args:
        signals: an open window ends where its site's signal is too old; without them it stays open.
    """
    ordered = table.sort("site", "start")
    parts = {str(key[0]): part for key, part in ordered.partition_by("site", as_dict=True, maintain_order=True).items()}
    found = {}
    for site in experiment.sites:
        rows = parts.get(site.name)
        signal = (signals or {}).get(site.region)
        found[site.name] = SiteWindows.none() if rows is None else _windows_of(rows, signal)
    return found


def _windows_of(rows: pl.DataFrame, signal: Signal | None) -> SiteWindows:
    start = micros_of(rows["start"])
    end = rows["end"].dt.epoch("us").fill_null(FOREVER).to_numpy().astype(np.int64)
    closed = [text or "" for text in rows["closed_by"]]
    if len(end) and end[-1] == FOREVER and signal is not None:
        end[-1] = max(signal.valid_until, int(start[-1]))
        closed[-1] = "signal ended"
    return SiteWindows(start, end, [text or "" for text in rows["opened_by"]], closed)
