"""A source behind an HTTP API, as a provider."""

import os
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Generic, TypeVar

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import LiveTraces
from curtail_pipeline.signals.http import JsonApi, RateLimiter
from curtail_pipeline.signals.provider import Provider
from curtail_pipeline.times import utc_now

S = TypeVar("S", bound=LiveTraces)


class LiveProvider(Provider, Generic[S]):
    """What every such source has. Nothing is asked before the first fetch."""

    name: ClassVar[str]
    requests_per_s: ClassVar[int | None] = None

    def __init__(
        self,
        settings: S,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], None] = time.sleep,
        limiter: RateLimiter | None = None,
    ) -> None:
        self.settings = settings
        self._environ, self._clock = environ, clock
        if limiter is None and self.requests_per_s is not None:
            limiter = RateLimiter(self.requests_per_s, 1.0, sleep=sleep)
        self._api = JsonApi(
            self.name,
            settings.base_url,
            timeout_s=settings.timeout_s,
            attempts=settings.attempts,
            limiter=limiter,
            clock=clock,
            sleep=sleep,
        )

    def _secret(self, name: str) -> str:
        """A variable, or the content of the file that `<name>_FILE` names, as containers mount secrets; else empty.

        Raises:
            TraceError: the file cannot be read.
        """
        given, file = self._environ.get(name, ""), self._environ.get(f"{name}_FILE")
        if given or not file:
            return given
        try:
            return Path(file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise TraceError(f"{name}_FILE names {file}, which cannot be read: {error.strerror or error}") from error

    def regions(self) -> list[str] | None:
        return None
