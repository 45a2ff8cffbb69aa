"""WattTime v3: marginal (and average) operating emission rates, and their forecasts.

Values come in lb CO2/MWh and are valid from `point_time` for `meta.data_point_period_seconds`. Documentation:
https://docs.watttime.org.
"""

import logging
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Final

import polars as pl
from pydantic import Field

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import Kind, Unit, WattTimeTraces
from curtail_pipeline.signals.cadence import DEFAULT_CADENCE_S
from curtail_pipeline.signals.http import A, Answer, ApiError, Known, Stamp, Value
from curtail_pipeline.signals.live import LiveProvider
from curtail_pipeline.signals.trace import (
    FORECAST_SCHEMA,
    POINT_SCHEMA,
    TO_G_PER_KWH,
    Ingested,
    empty_forecast,
    normalise,
)
from curtail_pipeline.times import iso

_log = logging.getLogger(__name__)

SIGNAL_TYPES: Final[Mapping[Kind, str]] = {"marginal_intensity": "co2_moer", "average_intensity": "co2_aoer"}
UNITS_SAID: Final[Mapping[str, Unit]] = {"lbs_co2_per_mwh": "lb/MWh"}

LONGEST_RANGE = timedelta(days=30)
"""Of one `historical` request; the API refuses more than 32 days."""
LONGEST_FORECAST_RANGE = timedelta(days=1)
"""Of one `forecast/historical` request."""
RENEW_AFTER = timedelta(minutes=25)
"""Age at which a token, which lives for 30 minutes, is replaced: early enough that a request with it still arrives."""
OLD_USER: Final = "WATTTIME_USERNAME"


class _Model(Answer):
    date: str | None = None


class _Warning(Answer):
    """Documented as an object; met as a string too."""

    type: str = "warning"
    message: str = ""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}"


class _Meta(Answer):
    units: str | None = None
    region: str | None = None
    data_point_period_seconds: int | None = None
    model: _Model | None = None
    warnings: list[_Warning | str] | None = None
    generated_at: Known = None


class _Point(Answer):
    point_time: Stamp
    value: Value | None = None
    imputed_data_used: bool | None = None
    last_updated: Known = None


class _Values(Answer):
    """Of `historical` and `forecast`."""

    meta: _Meta
    data: list[_Point] | None = None


class _Issue(Answer):
    generated_at: Stamp
    forecast: list[_Point] | None = None


class _Issues(Answer):
    """Of `forecast/historical`."""

    meta: _Meta
    data: list[_Issue] | None = None


class _Region(Answer):
    region: str


class _SignalAccess(Answer):
    signal_type: str | None = None
    regions: list[_Region] | None = None


class _Access(Answer):
    """Of `my-access`."""

    signal_types: list[_SignalAccess] | None = None


class _Login(Answer):
    token: str = Field(repr=False)


class WattTimeProvider(LiveProvider[WattTimeTraces]):
    """The API as a provider."""

    name = "WattTime"
    requests_per_s = 10
    """3,000 in any five minutes are allowed."""
    _token: tuple[str, datetime] | None = None
    """And when it was asked for."""

    def ingest(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> Ingested:
        """As `Provider.ingest`. Where the history does not reach the present five minutes yet, they come from the
        nowcast (the forecast's first item) and are marked as estimated."""
        chosen, signal = self._signal(region, kind)
        now = self._clock()
        points, period = pl.DataFrame(schema=POINT_SCHEMA), DEFAULT_CADENCE_S
        for low, high in _chunks(start, min(end, now), LONGEST_RANGE):
            # The end is inclusive; without the last second no stamp is asked for twice.
            last = max(low, high - timedelta(seconds=1))
            params = {"start": iso(low), "end": iso(last), "include_imputed_marker": "true"}
            answer = self._get("/v3/historical", _Values, region, signal, params)
            period = answer.meta.data_point_period_seconds or period
            points = pl.concat([points, _points(answer)])
        step = timedelta(seconds=period)
        present = now - (now - datetime.fromtimestamp(0, now.tzinfo)) % step
        newest = points["time"].max()
        if start <= present < end and not (isinstance(newest, datetime) and newest >= present):
            nowcast = _points(self._get("/v3/forecast", _Values, region, signal, {"horizon_hours": 0})).head(1)
            points = pl.concat([points, nowcast.with_columns(estimated=pl.lit(True))])
        return normalise(
            points,
            region=region,
            kind=chosen,
            unit="lb/MWh",
            source="watttime",
            start=start,
            end=max(start, min(end, present + step)),
            retrieved_at=now.replace(microsecond=0),
            cadence_s=period,
        )

    def forecasts(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> pl.DataFrame:
        """Forecasts issued in `[start, end)`; the newest one too when the range reaches the present."""
        _, signal = self._signal(region, kind)
        now = self._clock()
        horizon: dict[str, str | int] = {"horizon_hours": self.settings.horizon_hours}
        recent = timedelta(seconds=DEFAULT_CADENCE_S)
        rows: list[pl.DataFrame] = [empty_forecast()]
        for low, high in _chunks(start, min(end, now - recent), LONGEST_FORECAST_RANGE):
            params = {"start": iso(low), "end": iso(max(low, high - timedelta(seconds=1))), **horizon}
            issues = self._get("/v3/forecast/historical", _Issues, region, signal, params)
            _check_units(issues.meta)
            for issue in issues.data or []:
                rows.append(_forecast(region, issue.generated_at, issue.forecast or []))
        if end > now - recent and start <= now:
            newest = self._get("/v3/forecast", _Values, region, signal, horizon)
            _check_units(newest.meta)
            rows.append(_forecast(region, newest.meta.generated_at or now, newest.data or []))
        table = pl.concat(rows).unique(["issued_at", "target"], keep="last", maintain_order=True)
        return table.filter(pl.col("issued_at").is_between(start, end, closed="left")).sort("issued_at", "target")

    def kinds(self, region: str) -> list[Kind]:
        return list(SIGNAL_TYPES)

    def _signal(self, region: str, kind: Kind | None) -> tuple[Kind, str]:
        chosen: Kind = kind or "marginal_intensity"
        if chosen not in SIGNAL_TYPES:
            raise TraceError(f"WattTime has no {chosen} of region {region!r}; it has {', '.join(SIGNAL_TYPES)}")
        return chosen, SIGNAL_TYPES[chosen]

    def _covered(self, signal: str) -> list[str]:
        answer = self._authorised("/v3/my-access", _Access, {})
        return [
            entry.region
            for access in answer.signal_types or []
            if access.signal_type == signal
            for entry in access.regions or []
        ]

    def _get(self, path: str, kind: type[A], region: str, signal: str, params: Mapping[str, str | int]) -> A:
        theirs = self.settings.regions.get(region, region)
        model = {"model": self.settings.model} if self.settings.model else {}
        try:
            return self._authorised(path, kind, {"region": theirs, "signal_type": signal, **model, **params})
        except ApiError as error:
            if error.status == 403 and "scope" in error.body.lower():
                raise ApiError(
                    f"the WattTime plan does not cover {signal} of region {theirs!r}{self._covered_text(signal)}; "
                    "upgrade the plan, or take this region's trace from another provider",
                    error.status,
                    error.body,
                ) from error
            raise ApiError(f"region {region!r}: {error}", error.status, error.body) from error

    def _covered_text(self, signal: str) -> str:
        try:
            covered = self._covered(signal)
        except TraceError:
            return ""
        shown = ", ".join(covered[:20]) + (", ..." if len(covered) > 20 else "")
        return f" (it covers {shown or 'none'})"

    def _authorised(self, path: str, kind: type[A], params: Mapping[str, str | int]) -> A:
        if self._token is None or self._clock() - self._token[1] >= RENEW_AFTER:
            self._token = self._login()
        try:
            return self._api.get(path, kind, params, headers={"Authorization": f"Bearer {self._token[0]}"})
        except ApiError as error:
            # A plan that does not cover what is asked says so; another login would not help.
            if error.status not in (401, 403) or "scope" in error.body.lower():
                raise
        # The token ended before its time; a second refusal is final.
        self._token = self._login()
        return self._api.get(path, kind, params, headers={"Authorization": f"Bearer {self._token[0]}"})

    def _login(self) -> tuple[str, datetime]:
        names = ("WATTTIME_USER", "WATTTIME_PASSWORD")
        user, password = map(self._secret, names)
        if not user and self._environ.get(OLD_USER):
            user = self._environ[OLD_USER]
            _log.warning("%s is the old name of WATTTIME_USER, the official client's; rename it", OLD_USER)
        if not user or not password:
            missing = " and ".join(name for name, value in zip(names, (user, password), strict=True) if not value)
            raise TraceError(
                f"WattTime needs credentials: set {missing} in the environment of the process that fetches"
            )
        asked = self._clock()
        try:
            answer = self._api.get("/login", _Login, auth=(user, password))
        except ApiError as error:
            if error.status not in (401, 403):
                raise
            raise ApiError(
                "WattTime refused the user name and password; correct WATTTIME_USER and WATTTIME_PASSWORD",
                error.status,
                error.body,
            ) from error
        return answer.token, asked


def _chunks(start: datetime, end: datetime, longest: timedelta) -> Iterator[tuple[datetime, datetime]]:
    while start < end:
        until = min(end, start + longest)
        yield start, until
        start = until


def _check_units(meta: _Meta) -> None:
    if meta.units not in UNITS_SAID:
        raise TraceError(
            f"WattTime answered in unit {meta.units!r} for region {meta.region!r}; only {', '.join(UNITS_SAID)} is "
            "understood"
        )


def _points(answer: _Values) -> pl.DataFrame:
    """An answer's values (POINT_SCHEMA, lb/MWh), each with the model and the warnings of the answer it came in."""
    meta = answer.meta
    _check_units(meta)
    model = meta.model.date if meta.model else None
    said = "; ".join(map(str, meta.warnings or []))
    rows = [
        (item.point_time, item.value, model, bool(item.imputed_data_used), said or None, item.last_updated)
        for item in answer.data or []
    ]
    return pl.DataFrame(rows, schema=POINT_SCHEMA, orient="row")


def _forecast(region: str, issued: datetime, items: list[_Point]) -> pl.DataFrame:
    rows = [(issued, item.point_time, region, item.value) for item in items]
    table = pl.DataFrame(rows, schema=FORECAST_SCHEMA, orient="row")
    return table.with_columns(pl.col("value") * TO_G_PER_KWH["lb/MWh"])
