"""A segment's connection to its sites and its store while its rounds run, in whichever order they are merged."""

from collections.abc import Callable, Mapping

from curtail_pipeline.federation.admission import HeldoutLoss
from curtail_pipeline.federation.answers import Answers, Collector
from curtail_pipeline.federation.liveness import Liveness
from curtail_pipeline.federation.orders import Order, Plan
from curtail_pipeline.federation.plan import late_key
from curtail_pipeline.federation.round_merge import Journal
from curtail_pipeline.federation.server_life import LifeWriter
from curtail_pipeline.federation.trainer_api import StopOrder
from curtail_pipeline.federation.transport import Transport
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.store import Store


def _nothing() -> None:
    """For who has nothing else to do."""


class SegmentRun:
    """Sends orders and collects answers.

    Args:
        folder: the segment's scratch folder.
        limits: how long a site may show no progress.
        clock, wait: monotonic seconds and sleep.
        heldout_loss: judges updates where the plan has a gate.
    """

    def __init__(
        self,
        transport: Transport,
        plan: Plan,
        folder: str,
        store: Store,
        *,
        limits: LivenessLimits,
        clock: Callable[[], float],
        wait: Callable[[float], None],
        log: Callable[[str], None],
        heldout_loss: HeldoutLoss | None,
    ) -> None:
        self.plan, self.folder, self.store, self.limits = plan, folder, store, limits
        self.clock, self.wait, self.log, self.heldout_loss = clock, wait, log, heldout_loss
        self.liveness = Liveness(store, limits, clock)
        self.life = LifeWriter(store, folder, clock)
        self.journal = Journal(store, folder)
        self._transport = transport
        self._collector = Collector(transport, self.liveness, plan.quorum, clock=clock, beat=self.life.beat, wait=wait)

    def send(self, orders: Mapping[str, Order]) -> None:
        for site, order in orders.items():
            self.liveness.watch(site, order)
            self._transport.send(site, order)

    def collect(self, index: int, orders: Mapping[str, Order], meanwhile: Callable[[], None] = _nothing) -> Answers:
        """What became of the orders; whoever is late is told to end.

        Args:
            meanwhile: called again and again while answers are waited for.
        """
        found = self._collector.collect(index, set(orders), meanwhile)
        if found.late:
            plan = self.plan
            ends = StopOrder(key=plan.key, attempt=plan.attempt, replay=plan.replay, round=index)
            self.store.write_record(late_key(self.folder, index), ends)
        return found

    def await_late(self) -> None:
        """Wait for sites that are late, but not long: whoever orders next finds them free."""
        self._collector.await_late(self.limits.delivery_s)
