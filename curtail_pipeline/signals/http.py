"""A JSON API over HTTP: a rate limit, retries that honour Retry-After, and errors that say what happened.

Credentials travel in headers only, so that they are in no URL, log line or error.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, TypeVar

import httpx
import tenacity
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from curtail_pipeline.errors import TraceError
from curtail_pipeline.storage.records import Json
from curtail_pipeline.times import parse_utc, utc_now

RETRIED = frozenset({429, 500, 502, 503, 504})
LONGEST_WAIT_S = 120.0
"""A source that asks for more patience than this is given up on; the next scheduled run tries again."""


class ApiError(TraceError):
    """An answer other than success. `status` is its HTTP status, `body` the first of its text."""

    def __init__(self, message: str, status: int, body: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class RateLimiter:
    """At most `calls` in any `period_s`; `wait` sleeps until the next one is allowed. Safe between threads."""

    def __init__(
        self,
        calls: int,
        period_s: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.calls, self.period_s = calls, period_s
        self._clock, self._sleep = clock, sleep
        self._recent: deque[float] = deque(maxlen=calls)
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = self._clock()
            at = now
            if len(self._recent) == self.calls:
                at = max(now, self._recent[0] + self.period_s)
            self._recent.append(at)
        if at > now:
            self._sleep(at - now)


def retry_after_s(header: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for: a number or an HTTP date. None when it says neither."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, ((at if at.tzinfo else at.replace(tzinfo=UTC)) - now).total_seconds())


def _stamp(text: object) -> datetime:
    if not isinstance(text, str):
        raise ValueError("a time should be text")
    return parse_utc(text)


Stamp = Annotated[datetime, BeforeValidator(_stamp)]
"""A time in an answer, as aware UTC."""
Known = Annotated[Stamp | None, BeforeValidator(lambda text: text or None)]
"""A time that may be missing, null or empty."""
Value = Annotated[float, Field(strict=True)]
"""A JSON number: text and booleans are none."""


class Answer(BaseModel):
    """What is read of a provider's answer. Keys that are not named are ignored: the API is another's, and grows."""

    model_config = ConfigDict(extra="ignore", frozen=True)


A = TypeVar("A", bound=Answer)


def _misfit(error: ValidationError) -> str:
    """The first thing that is wrong with an answer, without its content."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(map(str, first["loc"]))
    if not where:
        return "with something other than an object"
    return f"without `{where}`" if first["type"] == "missing" else f"with an unreadable `{where}` ({first['msg']})"


class _Busy(Exception):
    """An answer that is worth another try."""

    def __init__(self, error: ApiError, wait_s: float | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait_s = wait_s


class JsonApi:
    """GET requests to one API."""

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        timeout_s: float = 30.0,
        attempts: int = 5,
        limiter: RateLimiter | None = None,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = name
        self._limiter = limiter
        self._clock, self._sleep = clock, sleep
        self._attempts = attempts
        self._client = httpx.Client(base_url=base_url, timeout=timeout_s, follow_redirects=False)

    def close(self) -> None:
        self._client.close()

    def get(
        self,
        path: str,
        kind: type[A],
        params: Mapping[str, str | int | bool] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        auth: tuple[str, str] | None = None,
    ) -> A:
        """The answer. 429, 5xx, broken connections and broken answers are tried again.

        Raises:
            ApiError: the API answered with an error, or something that is not JSON.
            TraceError: the API cannot be reached, or its answer is not of this kind.
        """

        def once() -> A:
            if self._limiter is not None:
                self._limiter.wait()
            try:
                response = self._client.get(path, params=dict(params or {}), headers=dict(headers or {}), auth=auth)
            except httpx.DecodingError as error:
                text = f"{self.name}'s answer to {path} is corrupt ({error}); ask again later"
                raise _Busy(ApiError(text, 502, ""), None) from error
            if response.is_success:
                try:
                    content = response.json()
                except ValueError as error:
                    # Cut off, or the page of a proxy: the next one may be whole.
                    raise _Busy(self._error(response, path, "which is not JSON"), None) from error
                return self._parsed(kind, content, path)
            failure = self._error(response, path)
            if response.status_code in RETRIED:
                raise _Busy(failure, retry_after_s(response.headers.get("Retry-After"), self._clock()))
            raise failure

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(self._is_passing),
            stop=tenacity.stop_after_attempt(self._attempts),
            wait=self._pause,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            return retrying(once)
        except _Busy as busy:
            raise busy.error from None
        except httpx.TransportError as error:
            raise TraceError(
                f"{self.name} cannot be reached at {self._client.base_url} ({type(error).__name__}: {error}); check "
                "the network and traces.base_url"
            ) from error

    def _parsed(self, kind: type[A], content: Json, path: str) -> A:
        try:
            return kind.model_validate(content)
        except ValidationError as error:
            raise TraceError(
                f"{self.name} answered {path} {_misfit(error)}; check traces.base_url and the API's version"
            ) from None  # the cause quotes the answer, which can be a token

    @staticmethod
    def _is_passing(error: BaseException) -> bool:
        if isinstance(error, _Busy):
            return error.wait_s is None or error.wait_s <= LONGEST_WAIT_S
        return isinstance(error, httpx.TransportError)

    @staticmethod
    def _pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _Busy) and error.wait_s is not None:
            return error.wait_s
        # Jitter keeps regions that failed together from asking again together.
        return float(min(2.0 ** (state.attempt_number - 1), 30.0) * random.uniform(0.75, 1.25))

    def _error(self, response: httpx.Response, path: str, what: str = "") -> ApiError:
        body = " ".join(response.text.split())[:300]
        said = f" {what}: {body!r}" if what else (f": {body!r}" if body else " with an empty body")
        return ApiError(f"{self.name} answered {response.status_code} to {path}{said}", response.status_code, body)
