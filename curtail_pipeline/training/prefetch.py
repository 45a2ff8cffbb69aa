"""Fetching the weights that a site's next round starts from while this one trains (`rounds.overlap`)."""

import logging
import threading
from collections.abc import Callable

from curtail_pipeline.errors import CurtailError
from curtail_pipeline.federation.answered import Merged
from curtail_pipeline.storage.store import NotStored

log = logging.getLogger(__name__)

LOOK_S = 1.0


class Prefetch:
    """Looks for the record of a merge, and brings its weights to this machine; by a thread of its own.

    Whether it does so in time changes nothing but the time: the order that starts from them brings what is not here.

    Args:
        read: the record's content; raises NotStored as long as there is none.
        bring: what it names.
    """

    def __init__(self, key: str, read: Callable[[str], bytes], bring: Callable[[Merged], None]) -> None:
        self._key, self._read, self._bring = key, read, bring
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prefetch", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """The round is over: look no further; what is being fetched arrives."""
        self._over.set()

    def wait(self) -> None:
        """Until nothing is being fetched."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                try:
                    self._bring(Merged.read(self._read(self._key), self._key))
                    return
                except NotStored:
                    self._over.wait(LOOK_S)
        except (CurtailError, OSError) as error:
            log.warning("the next round's weights are not fetched ahead: %s", error)
