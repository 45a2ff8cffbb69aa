"""What a trainer shows of every step: a line of JSON in a file, and gauges for Prometheus where a port is set."""

import logging
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import polars as pl
from pydantic import ConfigDict

from curtail_pipeline.emissions.meter import Meter
from curtail_pipeline.errors import StoreError, TrainingError
from curtail_pipeline.federation.orders import Order
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.signals.held import ACCOUNTING_KINDS, read_signals
from curtail_pipeline.storage.records import Message
from curtail_pipeline.storage.store import Store
from curtail_pipeline.storage.tables import read_table, trace_key
from curtail_pipeline.times import day_of, iso, to_us, utc_now
from curtail_pipeline.training.step_progress import StepProgress

log = logging.getLogger("curtail.trainer")

SIGNAL_S = 60.0
"""The store is asked for a newer signal at most so often."""
LONGEST_S = 5.0
"""That a step waits for it; what comes later counts for the next."""


class StepMetrics(Message):
    model_config = ConfigDict(use_attribute_docstrings=True)  # what Prometheus says of each

    at: str
    """When the step ended (UTC)."""
    site: str
    key: str
    """The segment's checkpoint."""
    replay: str
    """Empty in a live segment."""
    round: int
    step: int
    """Global number."""
    loss: float
    """Nats per token, before the step."""
    lr: float
    """Of Muon; the other rates keep their ratios to it."""
    tokens_per_s: float
    """Of this step."""
    mfu: float | None
    """Share in [0, 1] (`throughput`); null where the device's peak is not known."""
    watts: float | None
    """The site's power by its counters, PUE included; null without any."""
    gco2_per_h: float | None
    """At that power and the region's signal now; null without either."""


class PresentSignal:
    """Carbon intensity of a region now, from the traces in the store. Steps do not wait for a store that is silent."""

    def __init__(self, store: Store, region: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._region, self._clock = store, region, clock
        self._asked: float | None = None
        self._asking: threading.Thread | None = None
        self._known: pl.DataFrame | None = None

    def at(self, now: datetime) -> float | None:
        """gCO2/kWh; None where no intensity holds, as in a replay of recorded days."""
        seconds = self._clock()
        due = self._asked is None or seconds - self._asked >= SIGNAL_S
        if due and (self._asking is None or not self._asking.is_alive()):
            key = trace_key(day_of(now).isoformat(), self._region)
            self._asking = threading.Thread(target=self._ask, args=(key,), name="signal", daemon=True)
            self._asked = seconds
            self._asking.start()
            self._asking.join(LONGEST_S)
        known = self._known
        if known is None:
            return None
        signal = read_signals(known).get(self._region)
        value = signal.at(to_us(now)) if signal else float("nan")
        return None if value != value else value

    def _ask(self, key: str) -> None:
        self._known = self._read(key)

    def _read(self, key: str) -> pl.DataFrame | None:
        try:
            traces = read_table(self._store, key) if self._store.exists(key) else None
        except StoreError as error:
            log.debug("no signal: %s", error)
            return None
        return None if traces is None else traces.filter(pl.col("kind").is_in(ACCOUNTING_KINDS))


class Sink(Protocol):
    """Takes the metrics of every step."""

    def __call__(self, metrics: StepMetrics) -> None: ...

    def close(self) -> None:
        """There are no more."""


SHOWN = ("loss", "lr", "tokens_per_s", "mfu", "watts", "gco2_per_h")


def shown(metrics: StepMetrics) -> dict[str, float]:
    """What curves are drawn of, as far as it is known."""
    values = {name: getattr(metrics, name) for name in SHOWN}
    return {name: value for name, value in values.items() if value is not None}


class JsonLines:
    """Appends a line for each step, which is there for readers at once; a full disk costs lines, not training."""

    def __init__(self, path: Path) -> None:
        self._path, self._failing = path, False

    def __call__(self, metrics: StepMetrics) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(metrics.model_dump_json(by_alias=True) + "\n")
            self._failing = False
        except OSError as error:
            if not self._failing:
                log.error("no metrics: %s", error)
            self._failing = True

    def close(self) -> None:
        """Each line is there already."""


class Prometheus:
    """Gauges `curtail_<name>{site=...}` on a loopback port.

    Raises:
        TrainingError: the package is not installed, or the port is taken.
    """

    NAMES = ("step", *SHOWN)

    def __init__(self, port: int) -> None:
        try:
            from prometheus_client import CollectorRegistry, Gauge, start_http_server
        except ImportError:
            raise TrainingError(
                "metrics.prometheus_port is set and prometheus_client is not installed; "
                "pip install 'curtail_pipeline[metrics]', or take the setting out"
            ) from None
        registry = CollectorRegistry()
        fields = StepMetrics.model_fields
        self._gauges = {
            name: Gauge(f"curtail_{name}", fields[name].description or name, ["site"], registry=registry)
            for name in self.NAMES
        }
        try:
            self._server, self._thread = start_http_server(port, addr="127.0.0.1", registry=registry)
        except OSError as error:
            raise TrainingError(
                f"metrics.prometheus_port: {port} cannot be opened ({error.strerror}); set another port"
            ) from error

    def __call__(self, metrics: StepMetrics) -> None:
        for name, gauge in self._gauges.items():
            value = getattr(metrics, name)
            gauge.labels(metrics.site).set(float("nan") if value is None else value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class StepReporter:
    """Tells sinks of every step of a site's trainer."""

    def __init__(self, site: Site, meter: Meter, signal: PresentSignal, sinks: list[Sink]) -> None:
        self._site, self._meter, self._signal, self._sinks = site, meter, signal, sinks

    def __call__(self, order: Order, told: StepProgress) -> None:
        now = utc_now()
        drawing = self._meter.drawing_kw
        kw = None if drawing is None else drawing * self._site.pue
        intensity = None if kw is None else self._signal.at(now)
        metrics = StepMetrics(
            at=iso(now),
            site=self._site.name,
            key=order.key,
            replay=order.replay,
            round=order.round,
            step=told.step,
            loss=told.loss,
            lr=told.lr,
            tokens_per_s=told.step_tokens_per_s,
            mfu=told.mfu,
            watts=None if kw is None else 1000 * kw,
            gco2_per_h=None if kw is None or intensity is None else kw * intensity,
        )
        for sink in self._sinks:
            sink(metrics)

    def close(self) -> None:
        for sink in self._sinks:
            sink.close()
