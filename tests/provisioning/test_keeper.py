"""A site's thread brings it up and down, measures its starts, waits after failures, and holds nobody up."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from waiting import wait_until

from curtail_pipeline.provisioning.keeper import Keeper
from curtail_pipeline.provisioning.provisioner import ProvisionError, Standing
from curtail_pipeline.scheduling.absence import Absence
from curtail_pipeline.scheduling.provision import Provisioned, Want, provisioned_key
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.times import utc_now

UP, DOWN = Want(up=True, reason="curtailed"), Want(up=False)


class Machine:
    """A site that takes as long as it is told to."""

    def __init__(self) -> None:
        self.on = self.connected = False
        self.calls: list[str] = []
        self.error: str | None = None
        self.hold: threading.Event | None = None
        self.connects = self.stops = True

    def start(self, site: str) -> None:
        self.calls.append("start")
        if self.hold is not None:
            assert self.hold.wait(30)
        if self.error:
            raise ProvisionError(f"site {site}: {self.error}")
        self.on, self.connected = True, self.connects

    def stop(self, site: str) -> None:
        self.calls.append("stop")
        if not self.stops:
            raise ProvisionError(f"site {site}: not to be stopped")
        self.on = self.connected = False

    def state(self, site: str) -> Standing:
        return Standing("on") if self.on else Standing("off")


Made = Callable[..., tuple[Keeper, Machine]]


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return FolderStore(tmp_path)


@pytest.fixture
def make(store: FolderStore) -> Iterator[Made]:
    keepers = []

    def made(site: str = "fresno", timeout_s: float = 20.0) -> tuple[Keeper, Machine]:
        machine = Machine()
        keeper = Keeper(site, machine, store, lambda _: machine.connected, timeout_s, turn_s=0.01)
        keepers.append(keeper)
        keeper.start()
        return keeper, machine

    yield made
    for keeper in keepers:
        keeper.close()
        keeper.join(30)


def known(store: FolderStore, site: str = "fresno") -> Provisioned:
    key = provisioned_key(site)
    return store.read_record(key, Provisioned) if store.exists(key) else Provisioned()


def test_a_site_is_brought_up_and_down_and_its_start_is_measured(store: FolderStore, make: Made) -> None:
    keeper, machine = make()
    machine.hold = threading.Event()
    keeper.want(UP)
    wait_until(lambda: known(store).phase == "starting")
    time.sleep(0.1)
    machine.hold.set()
    wait_until(lambda: known(store).phase == "up")
    (took,) = known(store).start_s
    assert 0.1 <= took < 20 and known(store).start_up_s == took
    keeper.want(DOWN)
    wait_until(lambda: known(store).phase == "off")
    assert machine.calls == ["start", "stop"] and known(store).start_s == (took,)


def test_a_slow_site_holds_nobody_up(store: FolderStore, make: Made) -> None:
    slow, machine = make("slow")
    machine.hold = threading.Event()
    began = time.monotonic()
    slow.want(UP)
    other, _ = make("other")
    other.want(UP)
    wait_until(lambda: known(store, "other").phase == "up" and known(store, "slow").phase == "starting")
    slow.want(DOWN)
    assert known(store, "slow").phase == "starting" and time.monotonic() - began < 20
    machine.hold.set()
    wait_until(lambda: known(store, "slow").phase == "off" and machine.calls == ["start", "stop"])


def test_a_start_that_fails_is_an_absence_and_is_tried_again(store: FolderStore, make: Made) -> None:
    keeper, machine = make()
    machine.error = "no quota"
    keeper.want(UP)
    failed = wait_until(lambda: (f := known(store).failed) and f.times == 2 and f)  # the first wait is none at all
    assert failed.reason == "site fresno: no quota" and (failed.due - failed.last).total_seconds() == 15
    calls = len(machine.calls)
    time.sleep(0.1)
    assert len(machine.calls) == calls == 2, "it is not asked again before its wait is over"
    store.write_record(provisioned_key("fresno"), known(store))
    assert known(store).phase == "starting"


def test_what_failed_to_start_is_stopped_as_soon_as_it_is_not_wanted(store: FolderStore, make: Made) -> None:
    before = Absence(times=7, last=utc_now(), reason="no quota")  # tried again in a quarter of an hour
    store.write_record(provisioned_key("fresno"), Provisioned(phase="starting", failed=before))
    keeper, machine = make()
    keeper.want(UP)
    time.sleep(0.1)
    assert machine.calls == []
    machine.stops = False
    keeper.want(DOWN)
    wait_until(lambda: machine.calls == ["stop"] and (f := known(store).failed) and f.times == 8, 10)
    time.sleep(0.1)
    assert machine.calls == ["stop"], "one that cannot be stopped is tried again after its wait"


def test_a_clock_that_was_set_back_makes_no_wait_longer(store: FolderStore, make: Made) -> None:
    before = Absence(times=3, last=utc_now() + timedelta(hours=1), reason="no quota")
    store.write_record(provisioned_key("fresno"), Provisioned(failed=before))
    keeper, machine = make()
    keeper.want(UP)
    wait_until(lambda: known(store).phase == "up", 10)
    assert machine.calls == ["start"]


def test_one_that_does_not_connect_in_time_is_stopped(store: FolderStore, make: Made) -> None:
    keeper, machine = make(timeout_s=0.1)
    machine.connects = False
    keeper.want(UP)
    failed = wait_until(lambda: known(store).failed)
    assert failed.reason == "it was not connected within 0.1 s" and machine.calls[:2] == ["start", "stop"]


def test_a_site_that_dies_is_started_again(store: FolderStore, make: Made) -> None:
    keeper, machine = make()
    keeper.want(UP)
    wait_until(lambda: known(store).phase == "up")
    machine.on = machine.connected = False
    wait_until(lambda: machine.calls == ["start", "start"] and known(store).phase == "up")
    failed = known(store).failed
    assert failed is not None and failed.reason == "it is gone", "it is kept until the site was up for a while"


def test_one_that_is_up_already_is_taken_over(store: FolderStore, make: Made) -> None:
    keeper, machine = make()
    machine.on = machine.connected = True
    keeper.want(UP)
    wait_until(lambda: known(store).phase == "up")
    assert machine.calls == [] and known(store).start_s == ()
