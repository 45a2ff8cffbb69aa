"""A thread per site that brings it to where it is wanted, however long that takes, and says what it came to.

What fails is tried again after a wait that grows (`scheduling.absence`), and holds nobody up: neither the sensor, which
only says what is wanted, nor another site. The site's record in the store is this thread's alone.
"""

import logging
import threading
import time
from collections.abc import Callable

from curtail_pipeline.errors import CurtailError, MessageError, StoreError
from curtail_pipeline.provisioning.provisioner import Provisioner
from curtail_pipeline.scheduling.absence import Absence
from curtail_pipeline.scheduling.provision import REMEMBERED, Phase, Provisioned, Want, provisioned_key
from curtail_pipeline.storage.store import Store
from curtail_pipeline.times import utc_now

log = logging.getLogger("curtail.provisioning")

TURN_S = 1.0
STEADY_S = 60.0
"""A site that was up for so long is no longer blamed for earlier failures."""


class Keeper:
    """Of one site.

    Args:
        connected: whether the site is there to take orders; may ask a server.
        start_timeout_s: from the order to start until it is connected.
        turn_s: between two looks.
    """

    def __init__(
        self,
        site: str,
        provisioner: Provisioner,
        store: Store,
        connected: Callable[[str], bool],
        start_timeout_s: float,
        turn_s: float = TURN_S,
    ) -> None:
        self.site = site
        self._provisioner, self._store, self._connected = provisioner, store, connected
        self._start_timeout_s, self._turn_s = start_timeout_s, turn_s
        self._want: Want | None = None
        self._came, self._closed = threading.Event(), threading.Event()
        self._record: Provisioned | None = None
        self._thread = threading.Thread(target=self._work, name=f"provision-{site}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def want(self, want: Want) -> None:
        """What is wanted from now on. Returns at once."""
        if want != self._want:
            self._want = want
            self._came.set()

    def close(self) -> None:
        """Follow no further wish; the site stays as it is."""
        self._closed.set()
        self._came.set()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _work(self) -> None:
        while not self._closed.is_set():
            self._came.wait(self._turn_s)
            self._came.clear()
            try:
                self._turn()
            except StoreError as error:  # nothing can be written down; it is looked at again
                log.warning("site %s: %s", self.site, error)
            except CurtailError as error:
                self._failed(str(error))
            except Exception as error:  # a bug is no reason to leave a machine running unwatched
                log.error("site %s", self.site, exc_info=error)
                self._failed(f"{type(error).__name__}: {error}")

    def _turn(self) -> None:
        want = self._want
        if want is None or self._closed.is_set():
            return
        record = self._record = self._record or self._stored()
        failed = record.failed
        if failed is not None and failed.waits(utc_now()) and record.phase != "up":
            return
        if want.up:
            self._bring_up(record)
        else:
            self._bring_down(record)

    def _bring_up(self, record: Provisioned) -> None:
        found = self._provisioner.state(self.site)
        if record.phase == "up":
            if found.phase == "off":
                self._failed(found.detail or "it is gone")
            elif record.failed and record.since and (utc_now() - record.since).total_seconds() > STEADY_S:
                self._note("up", None)
            return
        if found.phase in ("on", "unknown") and self._connected(self.site):  # by another process, or by hand
            self._note("up", record.failed)
            return
        self._note("starting", record.failed)
        began = time.monotonic()
        self._provisioner.start(self.site)
        while not self._connected(self.site):
            found, waited = self._provisioner.state(self.site), time.monotonic() - began
            if found.phase == "off":
                self._failed(found.detail or "it ended while it was starting")
                return
            if waited > self._start_timeout_s:
                self._provisioner.stop(self.site)  # it would cost power for nothing
                self._failed(f"it was not connected within {self._start_timeout_s:g} s")
                return
            if self._closed.is_set() or (self._want is not None and not self._want.up):
                return  # the next turn stops it
            self._closed.wait(self._turn_s)
        took = time.monotonic() - began
        log.info("site %s is up after %.0f s", self.site, took)
        self._note("up", record.failed, (*record.start_s, round(took, 3))[-REMEMBERED:])

    def _bring_down(self, record: Provisioned) -> None:
        if record.phase == "off" and self._provisioner.state(self.site).phase in ("off", "unknown"):
            return
        self._note("stopping", record.failed)
        self._provisioner.stop(self.site)
        self._note("off", None)

    def _failed(self, reason: str) -> None:
        """What failed to start may be half there, so that it is stopped when it is not wanted any more."""
        record = self._record or Provisioned()
        times = record.failed.times + 1 if record.failed else 1
        log.warning("site %s: %s", self.site, reason)
        try:
            phase: Phase = "off" if record.phase == "up" else record.phase
            self._note(phase, Absence(times=times, last=utc_now(), reason=reason))
        except StoreError as error:
            log.warning("site %s: %s", self.site, error)

    def _note(self, phase: Phase, failed: Absence | None, start_s: tuple[float, ...] | None = None) -> None:
        before = self._record or Provisioned()
        self._record = Provisioned(
            phase=phase,
            since=before.since if phase == before.phase else utc_now(),
            start_s=before.start_s if start_s is None else start_s,
            failed=failed,
        )
        self._store.write_record(provisioned_key(self.site), self._record)

    def _stored(self) -> Provisioned:
        key = provisioned_key(self.site)
        try:
            return self._store.read_record(key, Provisioned) if self._store.exists(key) else Provisioned()
        except MessageError as error:  # of another version
            log.warning("site %s: %s", self.site, error)
            return Provisioned()
