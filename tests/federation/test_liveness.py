"""When a site counts as lost: by what it shows of its progress, and never for a store that does not answer."""

from pathlib import Path

import pytest
from test_rounds import Bench

from curtail_pipeline.federation.liveness import Liveness, Pulse, longest_still
from curtail_pipeline.federation.orders import Activity, Heartbeat, Order, Phase, agent_key
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.store import StoreUnavailable
from curtail_pipeline.times import EPOCH, seconds

LIMITS = LivenessLimits(liveness_s=10, transfer_s=100, compile_s=200, delivery_s=30)


@pytest.fixture(scope="module")
def order(tmp_path_factory: pytest.TempPathFactory) -> Order:
    bench = Bench(tmp_path_factory.mktemp("store"))
    bench.run(bench.plan([{"CA": 1}], ("CA",)))
    ((_, sent),) = bench.transport.sent
    return sent


def beat(
    at: float, order: Order | None, phase: Phase = "train", count: int = 1, step_s: float | None = 1.0
) -> Heartbeat:
    activity = None
    if order is not None:
        name = order.model_dump(include={"key", "attempt", "replay", "round"})
        activity = Activity(**name, phase=phase, count=count, step_s=step_s)
    return Heartbeat(site="CA", pid=1, at=EPOCH + seconds(at), busy=order is not None, activity=activity)


@pytest.mark.parametrize(
    ("phase", "step_s", "limit"),
    [
        ("train", 0.5, 10.0),
        ("train", 4.0, 20.0),
        ("train", 1e9, 200.0),  # a site cannot buy itself time by what it says of its steps
        ("train", None, 200.0),
        ("compile", 1.0, 200.0),
        ("fetch", None, 100.0),
        ("store", 1.0, 100.0),
    ],
)
def test_a_beating_thread_is_no_progress(order: Order, phase: Phase, step_s: float | None, limit: float) -> None:
    first = beat(0, order, phase, step_s=step_s)
    assert first.activity is not None and longest_still(first.activity, LIMITS) == limit
    pulse = Pulse(LIMITS, 0.0, first, order)
    lost = [at for at in range(0, 400, 2) if pulse.lost(beat(at, order, phase, step_s=step_s), at)]
    assert lost[0] == limit + 2  # found by the next heartbeat


def test_progress_keeps_a_trainer_alive(order: Order) -> None:
    pulse = Pulse(LIMITS, 0.0, beat(0, order), order)
    assert not any(pulse.lost(beat(at, order, count=at // 8), at) for at in range(0, 400, 2))
    assert pulse.lost(beat(400, None), 400) is None  # its result is on its way
    assert pulse.lost(beat(432, None), 432) == "it has not worked on its order for 32 s and no result has come"


def test_work_on_another_order_is_no_work_on_this_one(order: Order) -> None:
    other = order.model_copy(update={"round": 7})
    pulse = Pulse(LIMITS, 0.0, beat(0, other), order)
    said = [pulse.lost(beat(at, other, count=at), at) for at in range(0, 34, 2)]
    assert not any(said[:16]) and said[16] is not None
    # whoever watches over the process itself takes any work for life, and none
    pulse = Pulse(LIMITS, 0.0, beat(0, other))
    assert not any(pulse.lost(beat(at, other, count=at), at) for at in range(0, 100, 2))
    assert not any(pulse.lost(beat(at, None), at) for at in range(100, 500, 2))
    assert pulse.lost(beat(498, None), 512) == "no heartbeat for 14 s"


def test_a_trainer_that_nobody_waits_for_is_lost_soon(order: Order) -> None:
    """Its ClientApp or SuperNode was killed: it trains on, and no result would come back."""

    def deserted(at: float) -> Heartbeat:
        found = beat(at, order, count=int(at))
        assert found.activity is not None
        return found.model_copy(update={"activity": found.activity.model_copy(update={"waited_for": False})})

    pulse = Pulse(LIMITS, 0.0, beat(0, order), order)
    assert not any(pulse.lost(beat(at, order, count=at), at) for at in range(0, 20, 2))
    said = {at: pulse.lost(deserted(at), at) for at in range(20, 30, 2)}
    assert [at for at, why in said.items() if why] == [26, 28] and "its ClientApp or its SuperNode" in str(said[26])
    # one that was sent again finds the trainer at it, until its ClientApp has started
    pulse = Pulse(LIMITS, 0.0, deserted(0), order)
    assert not any(pulse.lost(deserted(at), at) for at in range(0, 20, 2))
    # who watches over the process alone does not kill it for that
    pulse = Pulse(LIMITS, 0.0, beat(0, order))
    assert not any(pulse.lost(deserted(at), at) for at in range(0, 20, 2))


def test_a_site_that_has_its_addresses_from_orders_is_silent_before_the_first(order: Order) -> None:
    """It may have been started anew since the last sign of it that is in the store."""
    linked = order.model_copy(update={"links": Links(get={}, put={})})
    old = beat(-100, None).model_copy(update={"pid": 7})
    for before in (None, old):
        pulse = Pulse(LIMITS, 0.0, before, linked)
        assert pulse.lost(before, 29.0) is None and "no heartbeat for 31 s" in (pulse.lost(before, 31.0) or "")
        pulse = Pulse(LIMITS, 0.0, before, linked)
        assert pulse.lost(beat(20, order), 20.0) is None
        assert "no heartbeat for 11 s" in (pulse.lost(beat(20, order), 31.0) or "")
    assert "no heartbeat for 11 s" in (Pulse(LIMITS, 0.0, None, order).lost(None, 11.0) or "")


def test_a_trainer_that_has_died_is_known_within_the_limit(order: Order) -> None:
    """Whenever it dies: its last heartbeat is seen up to a second late."""
    pulse, last = Pulse(LIMITS, 0.0, None, order), beat(100, order)
    looks = [at for at in range(101, 140) if pulse.lost(last, at - 0.01)]
    assert looks[0] - 100 <= LIMITS.liveness_s
    watched = Pulse(LIMITS, 0.0, None)  # who kills it for that gives it all the time
    assert next(at for at in range(101, 140) if watched.lost(last, at)) == 101 + LIMITS.liveness_s + 1


def test_a_hung_training_thread_is_named(tmp_path: Path, order: Order) -> None:
    pulse = Pulse(LIMITS, 0.0, beat(0, order), order)
    for at in range(0, 20, 2):
        pulse.lost(beat(at, order, count=4), at)
    assert pulse.lost(beat(20, order, count=4), 20) == "no progress for 20 s: train after 4 signs of it"


def test_an_outage_of_the_store_is_no_sites_death(
    tmp_path: Path, order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, now = FolderStore(tmp_path), [0.0]
    liveness = Liveness(store, LIMITS, lambda: now[0])
    store.write_record(agent_key("CA"), beat(0, order))
    liveness.watch("CA", order)
    now[0] = 7.0
    assert liveness.lost("CA") is None

    def away(key: str) -> bytes:
        raise StoreUnavailable(f"{key}: nobody answers")

    with monkeypatch.context() as patch:
        patch.setattr(store, "read_bytes", away)
        for now[0] in (15.0, 40.0):
            assert liveness.lost("CA") is None
        liveness.watch("TX", order)
    now[0] = 47.0
    assert liveness.lost("CA") is None, "the time without the store does not count"
    assert liveness.lost("TX") is None, "an order may be sent while it does not answer"
    now[0] = 51.0
    assert liveness.lost("CA") == "no heartbeat for 11 s"
    store.write_record(agent_key("CA"), beat(51, order, count=2))
    assert liveness.lost("CA") is None
