from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from signals_fake_api import Answer, FakeApi, Request, serve

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import ElectricityMapsTraces
from curtail_pipeline.signals.electricity_maps import ElectricityMapsProvider
from curtail_pipeline.signals.http import ApiError
from curtail_pipeline.times import parse_utc

NOW = datetime(2026, 3, 21, 12, 20, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
TOKEN = "em-token-99dd"


def item(stamp: datetime, value: float | None = 599, **changes: Any) -> dict[str, Any]:
    text = stamp.isoformat().replace("+00:00", ".000Z")
    return {
        "zone": "DE",
        "carbonIntensity": value,
        "datetime": text,
        "updatedAt": text,
        "createdAt": text,
        "emissionFactorType": "lifecycle",
        "isEstimated": False,
        "estimationMethod": None,
        **changes,
    }


def respond(request: Request) -> Answer:
    if request.headers.get("auth-token") != TOKEN:
        return Answer({"error": "Invalid auth-token"}, 401)
    if request.path == "/v3/carbon-intensity/history":
        last = NOW.replace(minute=0)
        return Answer({"zone": "DE", "history": [item(last - (23 - i) * HOUR) for i in range(24)]})
    start, end = parse_utc(request.params["start"]), parse_utc(request.params["end"])
    if end - start > 10 * DAY:
        return Answer({"error": "range too long"}, 400)
    data = [item(start + i * HOUR) for i in range(int((end - start) / HOUR) + 1)]
    return Answer({"zone": "DE", "data": data})


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serve(respond) as fake:
        yield fake


def make(api: FakeApi, token: str = TOKEN, **settings: Any) -> ElectricityMapsProvider:
    return ElectricityMapsProvider(
        ElectricityMapsTraces(base_url=f"{api.url}/v3", **settings),
        environ={"ELECTRICITY_MAPS_TOKEN": token},
        clock=lambda: NOW,
        sleep=lambda seconds: None,
    )


def test_the_past_comes_in_chunks_of_ten_days(api: FakeApi) -> None:
    start = NOW.replace(hour=0, minute=0) - 40 * DAY
    found = make(api, zones={"germany": "DE"}).ingest("germany", start, start + 25 * DAY)
    asked = [
        (parse_utc(r.params["start"]), parse_utc(r.params["end"])) for r in api.of("/v3/carbon-intensity/past-range")
    ]
    assert [end - begin for begin, end in asked] == [10 * DAY, 10 * DAY, 5 * DAY]
    assert {r.params["zone"] for r in api.requests} == {"DE"}
    assert len(found.trace) == 25 * 24 and found.report.nulls == 0
    assert found.report.conflicts == 0  # the stamp where two chunks meet agrees
    assert set(found.trace["kind"]) == {"average_intensity"}
    assert set(found.trace["model"]) == {"lifecycle"}


def test_the_last_day_comes_from_history_which_every_plan_has(api: FakeApi) -> None:
    midnight = NOW.replace(hour=0, minute=0)
    trace = make(api).fetch("DE", midnight, midnight + DAY)
    assert [r.path for r in api.requests] == ["/v3/carbon-intensity/history"]
    assert trace["time"][-1] == NOW.replace(minute=0) and len(trace) == 13


def test_nulls_estimates_and_revisions(api: FakeApi) -> None:
    start = NOW.replace(hour=0, minute=0) - 5 * DAY
    later = (start + 3 * DAY).isoformat().replace("+00:00", ".000Z")
    data = [
        item(start, 300, updatedAt=later),
        item(start, 280),
        item(start + HOUR, None),
        item(start + 2 * HOUR, 310, isEstimated=True, estimationMethod="TIME_SLICER_AVERAGE"),
    ]
    api.respond = lambda request: Answer({"data": data})
    found = make(api).ingest("DE", start, start + 4 * HOUR)
    assert found.trace["value"].to_list() == [300, None, 310, None]
    assert found.trace["estimated"].to_list() == [False, False, True, False]
    assert found.trace["warnings"][2] == "estimated by TIME_SLICER_AVERAGE"
    assert found.report.conflicts == 1 and found.report.conflict_examples[0].dropped == 280


def test_refusals_say_what_to_do(api: FakeApi) -> None:
    start = NOW - 20 * DAY
    with pytest.raises(
        ApiError, match=r"401.*Invalid auth-token.*ELECTRICITY_MAPS_TOKEN is wrong.*last 24 hours"
    ) as error:
        make(api, token="wrong-77").fetch("DE", start, start + DAY)
    assert "wrong-77" not in str(error.value)
    with pytest.raises(TraceError, match=r"set ELECTRICITY_MAPS_TOKEN"):
        make(api, token="").fetch("DE", start, start + DAY)
    with pytest.raises(TraceError, match=r"has no marginal_intensity of region 'DE'.*not define a window"):
        make(api).fetch("DE", start, start + DAY, "marginal_intensity")


def test_an_answer_that_misses_hours_is_not_one_of_another_granularity(api: FakeApi) -> None:
    start = NOW.replace(hour=0, minute=0) - 5 * DAY
    api.respond = lambda request: Answer({"data": [item(start + hours * HOUR) for hours in (0, 2, 5, 7)]})
    assert make(api).fetch("DE", start, start + DAY)["value"].drop_nulls().len() == 4


def test_no_answer_for_the_callers_place_another_zone_or_another_granularity(api: FakeApi) -> None:
    start = NOW.replace(hour=0, minute=0) - 5 * DAY
    make(api).fetch("DE", start, start + DAY)
    asked = api.requests[-1].params
    assert (asked["shouldUseFallbackCallerLookup"], asked["disableCallerLookup"]) == ("false", "true")
    assert asked["temporalGranularity"] == "hourly"
    for wrong, said in (
        ({"zone": "FR", "data": []}, "asked for zone 'DE' and answered for 'FR'"),
        ({"data": [item(start, zone="FR")]}, "asked for zone 'DE' and answered for 'FR'"),
        ({"temporalGranularity": "daily", "data": []}, "asked for granularity 'hourly' and answered for 'daily'"),
        ({"data": [item(start + i * HOUR / 4) for i in range(8)]}, "'hourly' and answered every 900 s"),
        ({"data": [item(start + i * DAY) for i in range(3)]}, "'hourly' and answered every 86400 s"),
    ):
        api.respond = lambda request, wrong=wrong: Answer(wrong)  # type: ignore[misc]
        with pytest.raises(TraceError, match=said):
            make(api).fetch("DE", start, start + 5 * DAY)
