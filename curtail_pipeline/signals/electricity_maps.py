"""Electricity Maps v3: average carbon intensity of a zone, for accounting. It can never define a window.

Values are valid from `datetime` (UTC, begin of the interval). Documentation: https://portal.electricitymaps.com/docs.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Final, TypeVar

import polars as pl
from pydantic import Field

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import ElectricityMapsTraces, Kind
from curtail_pipeline.signals.http import Answer, ApiError, Known, Stamp, Value
from curtail_pipeline.signals.live import LiveProvider
from curtail_pipeline.signals.trace import POINT_SCHEMA, Ingested, normalise
from curtail_pipeline.times import iso

LONGEST_RANGE = timedelta(days=10)
"""Of one `past-range` request."""
HISTORY = timedelta(hours=24)
"""What `history` covers; every plan has it."""
CADENCE_S: Final[Mapping[str, int]] = {"5_minutes": 300, "15_minutes": 900, "hourly": 3600}
_CADENCES_S = (*CADENCE_S.values(), 86_400)
"""Those, and days."""


class _Point(Answer):
    zone: str | None = None
    at: Stamp = Field(alias="datetime")
    value: Value | None = Field(default=None, alias="carbonIntensity")
    factors: str | None = Field(default=None, alias="emissionFactorType")
    is_estimated: bool | None = Field(default=None, alias="isEstimated")
    method: str | None = Field(default=None, alias="estimationMethod")
    updated: Known = Field(default=None, alias="updatedAt")


class _Intensities(Answer):
    zone: str | None = None
    granularity: str | None = Field(default=None, alias="temporalGranularity")

    def items(self) -> list[_Point]:
        return []


A = TypeVar("A", bound=_Intensities)


class _History(_Intensities):
    history: list[_Point] | None = None

    def items(self) -> list[_Point]:
        return self.history or []


class _PastRange(_Intensities):
    data: list[_Point] | None = None

    def items(self) -> list[_Point]:
        return self.data or []


class ElectricityMapsProvider(LiveProvider[ElectricityMapsTraces]):
    """The API as a provider."""

    name = "Electricity Maps"

    def ingest(self, region: str, start: datetime, end: datetime, kind: Kind | None = None) -> Ingested:
        """As `Provider.ingest`. The last 24 hours come from `history`, which every plan has, older ones from
        `past-range`."""
        if kind is not None and kind != "average_intensity":
            raise TraceError(
                f"Electricity Maps has no {kind} of region {region!r}, only average_intensity, which can account for "
                "energy but not define a window; take the signal of windows from another provider"
            )
        now = self._clock()
        until = min(end, now)
        cadence = timedelta(seconds=CADENCE_S[self.settings.granularity])
        present = now - (now - datetime.fromtimestamp(0, now.tzinfo)) % cadence
        items: list[_Point] = []
        if start > present - HISTORY:
            if start < until:
                items = self._get("/carbon-intensity/history", _History, region, {}).history or []
        else:
            low = start
            while low < until:
                high = min(until, low + LONGEST_RANGE)
                asked = {"start": iso(low), "end": iso(high)}
                items += self._get("/carbon-intensity/past-range", _PastRange, region, asked).data or []
                low = high
        return normalise(
            _points(items),
            region=region,
            kind="average_intensity",
            unit="g/kWh",
            source="electricity_maps",
            start=start,
            end=max(start, min(end, present + cadence)),
            retrieved_at=now.replace(microsecond=0),
            cadence_s=CADENCE_S[self.settings.granularity],
        )

    def kinds(self, region: str) -> list[Kind]:
        return ["average_intensity"]

    def _get(self, path: str, kind: type[A], region: str, params: Mapping[str, str]) -> A:
        token = self._secret("ELECTRICITY_MAPS_TOKEN")
        if not token:
            raise TraceError(
                "Electricity Maps needs a token: set ELECTRICITY_MAPS_TOKEN in the environment of the process that "
                "fetches"
            )
        zone = self.settings.zones.get(region, region)
        asked = {
            "zone": zone,
            # Without them a zone that is not known is answered for the place that asks. The documentation of v3 names
            # the first, that of v4 the second.
            "shouldUseFallbackCallerLookup": "false",
            "disableCallerLookup": "true",
            "temporalGranularity": self.settings.granularity,
            "emissionFactorType": self.settings.emission_factors,
            **params,
        }
        try:
            answer = self._api.get(path, kind, asked, headers={"auth-token": token})
        except ApiError as error:
            if error.status in (401, 403) and "past-range" in path:
                reason = (
                    f"the plan does not cover the past of zone {zone!r}, or ELECTRICITY_MAPS_TOKEN is wrong; a free "
                    "plan has one zone and its last 24 hours"
                )
            elif error.status in (401, 403):
                reason = f"the plan does not cover zone {zone!r}, or ELECTRICITY_MAPS_TOKEN is wrong"
            else:
                reason = f"check the zone of region {region!r} in traces.zones"
            raise ApiError(f"{error}; {reason}", error.status, error.body) from error
        for answered in (answer.zone, *(item.zone for item in answer.items())):
            _require_same(zone, answered, "zone")
        _require_same(self.settings.granularity, answer.granularity, "granularity")
        _require_cadence(self.settings.granularity, answer.items())
        return answer


def _require_same(asked: str, answered: str | None, what: str) -> None:
    if answered is not None and answered != asked:
        raise TraceError(
            f"Electricity Maps was asked for {what} {asked!r} and answered for {answered!r}; check traces.zones, "
            "traces.granularity and what the plan covers"
        )


def _require_cadence(asked: str, items: list[_Point]) -> None:
    """An answer that does not name its granularity shows it; missing points are not another granularity."""
    steps = [(after - before).total_seconds() for before, after in pairwise(sorted({item.at for item in items}))]
    wanted = CADENCE_S[asked]
    coarser = [seconds for seconds in _CADENCES_S if seconds > wanted]
    others = any(step % wanted for step in steps)
    if others or (len(steps) > 1 and any(all(step % seconds == 0 for step in steps) for seconds in coarser)):
        raise TraceError(
            f"Electricity Maps was asked for granularity {asked!r} and answered every {min(steps):g} s; set "
            "traces.granularity to what the plan covers"
        )


def _points(items: list[_Point]) -> pl.DataFrame:
    """An answer's values (POINT_SCHEMA, g/kWh). The later `updatedAt` of a stamp wins."""
    rows = [
        (
            item.at,
            item.value,
            item.factors,
            bool(item.is_estimated),
            f"estimated by {item.method}" if item.method else None,
            item.updated,
        )
        for item in items
    ]
    return pl.DataFrame(rows, schema=POINT_SCHEMA, orient="row")
