import gzip
import logging
import traceback
from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest
from fake_watttime import DAY, FIVE, NOW, SECRETS, TOKENS, Backend, Clock, ceil_five, meta, points
from signals_fake_api import Answer, FakeApi, Request, serve

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import WattTimeTraces
from curtail_pipeline.signals.http import ApiError, RateLimiter, retry_after_s
from curtail_pipeline.signals.trace import FORECAST_SCHEMA, TRACE_SCHEMA
from curtail_pipeline.signals.watttime import WattTimeProvider
from curtail_pipeline.times import iso, parse_utc


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
def api(backend: Backend) -> Iterator[FakeApi]:
    with serve(backend) as fake:
        yield fake


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def provider(api: FakeApi, clock: Clock) -> WattTimeProvider:
    limiter = RateLimiter(1000, 1.0, sleep=clock.sleep)
    settings = WattTimeTraces(base_url=api.url)
    return WattTimeProvider(settings, environ=SECRETS, clock=clock, sleep=clock.sleep, limiter=limiter)


def test_history_is_asked_in_chunks_of_30_days_and_no_stamp_comes_twice(
    provider: WattTimeProvider, api: FakeApi
) -> None:
    start = NOW.replace(hour=0, minute=0, second=0) - 70 * DAY
    found = provider.ingest("CAISO_NORTH", start, start + 65 * DAY)
    asked = [(parse_utc(r.params["start"]), parse_utc(r.params["end"])) for r in api.of("/v3/historical")]
    assert len(asked) == 3
    assert asked[0][0] == start
    assert all(end - begin < 30 * DAY for begin, end in asked)
    assert all(before[1] < after[0] for before, after in pairwise(asked))
    assert len(found.trace) == 65 * 288
    assert found.report.duplicates == found.report.nulls == 0
    assert found.trace.schema == pl.Schema(TRACE_SCHEMA)


def test_pounds_per_mwh_become_grams_per_kwh(provider: WattTimeProvider) -> None:
    trace = provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    assert trace["value"].unique().to_list() == [pytest.approx(870 * 0.45359237, rel=1e-12)]
    assert set(trace["unit"]) == {"g/kWh"} and set(trace["source"]) == {"watttime"}
    assert set(trace["model"]) == {"2023-03-01"}


def test_model_warnings_and_imputed_marker_are_kept_per_value(provider: WattTimeProvider, backend: Backend) -> None:
    start = NOW.replace(hour=0, minute=0, second=0) - 40 * DAY
    switch = start + 30 * DAY

    def by_model(request: Request) -> Answer:
        begin, end = parse_utc(request.params["start"]), parse_utc(request.params["end"])
        assert request.params["include_imputed_marker"] == "true"
        data = points(ceil_five(begin), end)
        if begin < switch:
            return Answer({"data": data, "meta": meta()})
        data[0]["imputed_data_used"] = True
        warnings = [{"type": "EXTENSIVE_IMPUTATION", "message": "many points were imputed"}]
        return Answer({"data": data, "meta": meta(model={"date": "2026-02-01"}, warnings=warnings)})

    backend.historical = by_model
    found = provider.ingest("CAISO_NORTH", start, start + 35 * DAY)
    late = pl.col("time") >= switch
    assert found.trace.filter(~late)["model"].unique().to_list() == ["2023-03-01"]
    assert found.trace.filter(late)["model"].unique().to_list() == ["2026-02-01"]
    assert found.trace.filter("estimated")["time"].to_list() == [switch]
    assert found.trace.filter(~late)["warnings"].null_count() == 30 * 288
    assert found.report.warnings == ("EXTENSIVE_IMPUTATION: many points were imputed",)


def test_today_ends_with_the_nowcast_and_a_lag_before_it_stays_null(
    provider: WattTimeProvider, backend: Backend, api: FakeApi
) -> None:
    midnight = NOW.replace(hour=0, minute=0, second=0)
    backend.history_until = NOW - timedelta(minutes=20)
    trace = provider.fetch("CAISO_NORTH", midnight, midnight + DAY)
    assert trace["time"][-1] == NOW.replace(minute=0, second=0)
    assert trace["value"][-1] == pytest.approx(100 * 0.45359237)
    assert trace.filter("estimated")["time"].to_list() == [trace["time"][-1]]
    assert trace.filter(pl.col("value").is_null())["time"].to_list() == [
        NOW.replace(hour=11, minute=m, second=0) for m in (45, 50, 55)
    ]
    assert api.of("/v3/forecast")[0].params["horizon_hours"] == "0"


def test_no_nowcast_is_asked_when_history_reaches_the_present(provider: WattTimeProvider, api: FakeApi) -> None:
    provider.fetch("CAISO_NORTH", NOW - DAY, NOW)
    assert not api.of("/v3/forecast")


def test_token_is_renewed_before_it_ends(provider: WattTimeProvider, backend: Backend, clock: Clock) -> None:
    provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    clock.now += timedelta(minutes=24)
    provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    assert backend.logins == 1
    clock.now += timedelta(minutes=2)
    provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    assert backend.logins == 2


def test_a_refused_token_is_renewed_once_and_no_more(
    provider: WattTimeProvider, backend: Backend, api: FakeApi
) -> None:
    provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    backend.logins = 2  # the first token is worth nothing now
    provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    assert backend.logins == 3
    assert [r.path for r in api.requests[-3:]] == ["/v3/historical", "/login", "/v3/historical"]
    backend.historical = lambda request: Answer("Jwt is expired", 401)
    backend.logins = 0
    with pytest.raises(ApiError, match=r"401.*Jwt is expired"):
        provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    assert backend.logins == 1


def test_a_plain_403_logs_in_once_and_a_second_one_is_final(
    provider: WattTimeProvider, backend: Backend, api: FakeApi
) -> None:
    answers = iter([Answer("Forbidden", 403)])
    backend.historical = lambda request: next(answers, None)
    assert len(provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)) == 288
    assert [request.path for request in api.requests] == ["/login", "/v3/historical", "/login", "/v3/historical"]
    backend.historical = lambda request: Answer("Forbidden", 403)
    with pytest.raises(ApiError, match=r"region 'DE'.*403.*Forbidden"):
        provider.fetch("DE", NOW - 2 * DAY, NOW - DAY)
    assert backend.logins == 3


def test_the_old_name_of_the_user_is_taken_with_a_warning(
    api: FakeApi, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    def fetch(**environ: str) -> int:
        provider = WattTimeProvider(WattTimeTraces(base_url=api.url), environ=environ, clock=clock, sleep=clock.sleep)
        return len(provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY))

    assert fetch(WATTTIME_USER="ann", WATTTIME_PASSWORD="x") == 288
    assert not caplog.text
    assert fetch(WATTTIME_USERNAME="ann", WATTTIME_PASSWORD="x") == 288
    assert "WATTTIME_USERNAME is the old name of WATTTIME_USER" in caplog.text
    with pytest.raises(TraceError, match=r"set WATTTIME_USER and WATTTIME_PASSWORD in the environment"):
        fetch()


def test_credentials_may_be_in_files(api: FakeApi, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("x\n")

    def fetch(file: str) -> int:
        environ = {"WATTTIME_USER": "ann", "WATTTIME_PASSWORD_FILE": str(tmp_path / file)}
        provider = WattTimeProvider(WattTimeTraces(base_url=api.url), environ=environ, clock=clock, sleep=clock.sleep)
        return len(provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY))

    assert fetch("password") == 288
    with pytest.raises(TraceError, match=r"WATTTIME_PASSWORD_FILE names .*none, which cannot be read: No such file"):
        fetch("none")


def test_a_corrupt_answer_is_asked_for_again(
    provider: WattTimeProvider, backend: Backend, api: FakeApi, clock: Clock
) -> None:
    corrupt = Answer(b"\x1f\x8b\x08\x00" + b"\xff" * 40, headers={"Content-Encoding": "gzip"})
    cut_off = Answer(gzip.compress(b'{"data": []}')[:15], headers={"Content-Encoding": "gzip"})
    answers = iter([corrupt, cut_off])
    backend.historical = lambda request: next(answers, None)
    assert len(provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)) == 288
    assert len(api.of("/v3/historical")) == 3 and len(clock.slept) == 2
    backend.historical = lambda request: corrupt
    with pytest.raises(ApiError, match=r"answer to /v3/historical is corrupt.*ask again later"):
        provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)


def test_warnings_may_be_texts(provider: WattTimeProvider, backend: Backend) -> None:
    said = meta(warnings=["imputed values", {"type": "OLD", "message": "model"}])
    backend.historical = lambda request: Answer({"data": points(NOW - 2 * DAY, NOW - 2 * DAY), "meta": said})
    found = provider.ingest("CAISO_NORTH", NOW - 2 * DAY, NOW - 2 * DAY + FIVE)
    assert found.report.warnings == ("imputed values; OLD: model",)


def test_429_waits_as_long_as_retry_after_says(provider: WattTimeProvider, backend: Backend, clock: Clock) -> None:
    answers = iter([Answer({"error": "too many requests"}, 429, {"Retry-After": "17"}), Answer("bad gateway", 502)])
    backend.historical = lambda request: next(answers, None)
    assert len(provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)) == 288
    assert clock.slept[0] == 17
    assert 1 < clock.slept[1] < 3  # exponential, with jitter


def test_persistent_failure_ends_with_the_last_answer(
    provider: WattTimeProvider, backend: Backend, api: FakeApi
) -> None:
    backend.historical = lambda request: Answer("upstream connect error", 503)
    with pytest.raises(ApiError, match=r"region 'SPP_TX'.*503.*upstream connect error"):
        provider.fetch("SPP_TX", NOW - 2 * DAY, NOW - DAY)
    assert len(api.of("/v3/historical")) == 5


def test_a_wait_beyond_patience_is_not_sat_out(provider: WattTimeProvider, backend: Backend, clock: Clock) -> None:
    backend.historical = lambda request: Answer("slow down", 429, {"Retry-After": "3600"})
    with pytest.raises(ApiError, match=r"429"):
        provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    assert clock.slept == []


def test_a_plan_error_names_the_region_and_is_not_retried(
    provider: WattTimeProvider, backend: Backend, api: FakeApi, clock: Clock
) -> None:
    text = "Invalid scope. You do not have sufficient access to this resource; all users get CAISO_NORTH"
    backend.historical = lambda request: Answer({"error": text}, 403)
    with pytest.raises(ApiError, match=r"plan does not cover co2_moer of region 'SPP_TX' \(it covers CAISO_NORTH\)"):
        provider.fetch("SPP_TX", NOW - 2 * DAY, NOW - DAY)
    assert len(api.of("/v3/historical")) == 1
    assert backend.logins == 1 and clock.slept == []


def test_plain_text_and_broken_bodies_become_readable_errors(provider: WattTimeProvider, backend: Backend) -> None:
    backend.historical = lambda request: Answer("region XX does not exist", 400)
    with pytest.raises(ApiError, match=r"region 'XX'.*400.*region XX does not exist"):
        provider.fetch("XX", NOW - 2 * DAY, NOW - DAY)
    backend.historical = lambda request: Answer("<html>maintenance</html>")
    with pytest.raises(ApiError, match=r"not JSON.*maintenance"):
        provider.fetch("XX", NOW - 2 * DAY, NOW - DAY)
    backend.historical = lambda request: Answer({"data": [], "meta": meta(units="percentile")})
    with pytest.raises(TraceError, match=r"'percentile'"):
        provider.fetch("XX", NOW - 2 * DAY, NOW - DAY)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "with something other than an object"),
        ({"data": []}, "without `meta`"),
        ({"data": [{"value": 1}], "meta": meta()}, "without `data.0.point_time`"),
        ({"data": [{"point_time": 5, "value": 1}], "meta": meta()}, r"with an unreadable `data.0.point_time` \(.*text"),
        (
            {"data": [{"point_time": "soon", "value": 1}], "meta": meta()},
            r"with an unreadable `data.0.point_time` \(.*ISO",
        ),
        ({"data": [{"point_time": iso(NOW), "value": "low"}], "meta": meta()}, "with an unreadable `data.0.value`"),
    ],
)
def test_an_answer_in_another_form_is_named_by_its_part(
    provider: WattTimeProvider, backend: Backend, body: object, said: str
) -> None:
    backend.historical = lambda request: Answer(body)
    with pytest.raises(TraceError, match=f"WattTime answered /v3/historical {said}.*; check traces.base_url"):
        provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)


def test_keys_that_are_new_and_parts_that_are_null_do_no_harm(provider: WattTimeProvider, backend: Backend) -> None:
    stamp = iso(NOW.replace(second=0, minute=0) - 2 * DAY)
    point = {"point_time": stamp, "value": 870, "last_updated": "", "quality": {"grade": "A"}}
    said = meta(model=None, warnings=None, data_point_period_seconds=None, version=4)
    backend.historical = lambda request: Answer({"data": [point], "meta": said, "next": None})
    trace = provider.fetch("CAISO_NORTH", NOW - 2 * DAY - timedelta(minutes=10), NOW - DAY)
    assert trace.drop_nulls("value").select("value", "model", "estimated").rows() == [
        (pytest.approx(870 * 0.45359237), None, False)
    ]


def test_an_answer_that_is_refused_is_not_quoted(api: FakeApi, clock: Clock) -> None:
    api.respond = lambda request: Answer({"token": {"secret": TOKENS[0]}})
    provider = WattTimeProvider(WattTimeTraces(base_url=api.url), environ=SECRETS, clock=clock, sleep=clock.sleep)
    with pytest.raises(TraceError, match="answered /login with an unreadable `token`") as error:
        provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    assert TOKENS[0] not in "".join(traceback.format_exception(error.value))


def test_wrong_or_missing_credentials_are_named_but_never_shown(
    api: FakeApi, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    settings = WattTimeTraces(base_url=api.url)
    with pytest.raises(TraceError, match=r"set WATTTIME_PASSWORD in the environment"):
        WattTimeProvider(settings, environ={"WATTTIME_USER": "x"}, clock=clock).fetch("DE", NOW - DAY, NOW)
    good = WattTimeProvider(settings, environ=SECRETS, clock=clock, sleep=clock.sleep)
    trace = good.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    api.respond = lambda request: Answer("Forbidden", 403)
    refused = WattTimeProvider(settings, environ=SECRETS, clock=clock, sleep=clock.sleep)
    with pytest.raises(ApiError, match=r"correct WATTTIME_USER and WATTTIME_PASSWORD") as error:
        refused.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    seen = caplog.text + str(error.value) + str(trace.to_dict(as_series=False)) + repr(good.__dict__["settings"])
    for secret in (*SECRETS.values(), *TOKENS):
        assert secret not in seen


def test_an_unreachable_api_is_named(clock: Clock) -> None:
    with serve(lambda request: Answer("")) as gone:
        url = gone.url
    provider = WattTimeProvider(
        WattTimeTraces(base_url=url, attempts=2), environ=SECRETS, clock=clock, sleep=clock.sleep
    )
    with pytest.raises(TraceError, match=r"WattTime cannot be reached at http://127.0.0.1"):
        provider.fetch("CAISO_NORTH", NOW - 2 * DAY, NOW - DAY)
    assert len(clock.slept) == 1


def test_regions_are_mapped(api: FakeApi, clock: Clock) -> None:
    settings = WattTimeTraces(base_url=api.url, regions={"california": "CAISO_NORTH"}, model="2023-03-01")
    provider = WattTimeProvider(settings, environ=SECRETS, clock=clock, sleep=clock.sleep)
    trace = provider.fetch("california", NOW - 2 * DAY, NOW - DAY)
    assert set(trace["region"]) == {"california"}
    assert api.of("/v3/historical")[0].params["region"] == "CAISO_NORTH"
    assert api.of("/v3/historical")[0].params["model"] == "2023-03-01"
    with pytest.raises(TraceError, match=r"no price of region"):
        provider.fetch("california", NOW - 2 * DAY, NOW - DAY, "price")


def test_forecasts_of_the_past_come_in_chunks_of_a_day_and_the_newest_from_forecast(
    provider: WattTimeProvider, api: FakeApi
) -> None:
    start = NOW.replace(hour=0, minute=0, second=0) - DAY
    table = provider.forecasts("CAISO_NORTH", start, NOW)
    assert table.schema == pl.Schema(FORECAST_SCHEMA)
    assert len(api.of("/v3/forecast/historical")) == 2
    newest = table.filter(pl.col("issued_at") == table["issued_at"].max())
    assert len(newest) == 24 * 12 + 1
    assert newest["target"][0] == newest["issued_at"][0] == NOW.replace(minute=0, second=0)
    assert newest["value"][0] == pytest.approx(100 * 0.45359237)
    assert table.filter(pl.col("issued_at") == start)["value"].to_list() == [pytest.approx(10 * 0.45359237)] * 2
    assert table.select("issued_at", "target").is_unique().all()


def test_limiter_allows_ten_requests_in_any_second() -> None:
    now, allowed = [0.0], []

    def sleep(seconds: float) -> None:
        now[0] += seconds

    limiter = RateLimiter(10, 1.0, clock=lambda: now[0], sleep=sleep)
    for call in range(35):
        limiter.wait()
        allowed.append(now[0])
        now[0] += 0.01 if call % 3 else 0.0
    assert all(later - earlier >= 1.0 - 1e-9 for earlier, later in zip(allowed, allowed[10:], strict=False))
    assert allowed[-1] < 3.5


def test_retry_after_as_number_date_or_nonsense() -> None:
    assert retry_after_s("12", NOW) == 12
    assert retry_after_s("Sat, 21 Mar 2026 12:03:00 GMT", NOW) == 30
    assert retry_after_s("soon", NOW) is None
    assert retry_after_s(None, NOW) is None
