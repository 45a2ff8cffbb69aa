"""WattTime in this process, and a clock that does not wait."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from signals_fake_api import Answer, Request

from curtail_pipeline.times import iso, parse_utc

NOW = datetime(2026, 3, 21, 12, 2, 30, tzinfo=UTC)
DAY = timedelta(days=1)
FIVE = timedelta(minutes=5)
SECRETS = {"WATTTIME_USER": "ann-of-grid", "WATTTIME_PASSWORD": "pass-8f2c1e"}
TOKENS = ("jwt-one-77aa", "jwt-two-77bb", "jwt-three-77cc")


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = NOW
        self.slept: list[float] = []

    def __call__(self) -> datetime:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)


def meta(**changes: Any) -> dict[str, Any]:
    return {
        "data_point_period_seconds": 300,
        "region": "CAISO_NORTH",
        "signal_type": "co2_moer",
        "model": {"date": "2023-03-01", "type": "binned_regression"},
        "units": "lbs_co2_per_mwh",
        "warnings": [],
        **changes,
    }


def points(start: datetime, last: datetime, value: float = 870) -> list[dict[str, Any]]:
    """As the API gives them: the end is inclusive."""
    stamps = int((last - start) / FIVE) + 1
    return [
        {"point_time": iso(start + i * FIVE), "value": value, "last_updated": "2026-03-20T00:00:00Z"}
        for i in range(stamps)
    ]


def ceil_five(stamp: datetime) -> datetime:
    return datetime.fromtimestamp(-(-int(stamp.timestamp()) // 300) * 300, UTC)


@dataclass
class Backend:
    """WattTime as its documentation and recorded answers describe it."""

    logins: int = 0
    history_until: datetime = NOW
    nowcast_at: datetime = NOW
    historical: Callable[[Request], Answer | None] = lambda request: None

    def __call__(self, request: Request) -> Answer:
        if request.path == "/login":
            self.logins += 1
            return Answer({"token": TOKENS[self.logins - 1]})
        if request.headers.get("authorization") != f"Bearer {TOKENS[self.logins - 1]}":
            return Answer("Jwt is missing", 401)
        if request.path == "/v3/historical":
            if special := self.historical(request):
                return special
            start, end = parse_utc(request.params["start"]), parse_utc(request.params["end"])
            if end - start > 32 * DAY:
                return Answer({"error": "range too long"}, 400)
            return Answer({"data": points(ceil_five(start), min(end, self.history_until)), "meta": meta()})
        if request.path == "/v3/forecast":
            first = datetime.fromtimestamp(self.nowcast_at.timestamp() // 300 * 300, UTC)
            hours = int(request.params["horizon_hours"])
            data = points(first, first + timedelta(hours=hours), value=100)
            return Answer({"data": data, "meta": meta(generated_at=iso(first))})
        if request.path == "/v3/forecast/historical":
            start, end = parse_utc(request.params["start"]), parse_utc(request.params["end"])
            if end - start > DAY:
                return Answer({"error": "at most one day"}, 400)
            issues = [
                {"generated_at": item["point_time"], "forecast": points(at, at + FIVE, value=10)}
                for item in points(start, end)
                for at in [parse_utc(item["point_time"])]
            ]
            return Answer({"data": issues, "meta": meta()})
        if request.path == "/v3/my-access":
            regions = [{"region": "CAISO_NORTH", "region_full_name": "CAISO North"}]
            return Answer({"signal_types": [{"signal_type": "co2_moer", "regions": regions}]})
        return Answer("not found", 404)
