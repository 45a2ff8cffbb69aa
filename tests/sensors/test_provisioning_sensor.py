"""Sites that are really started and stopped: warm before an order, off after it, absent when they cannot be."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from micro import EXPERIMENT, START
from test_membership_sensor import prepared, segment_run, tick_at
from waiting import wait_until

from curtail_pipeline.federation.orders import Heartbeat, agent_key
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.scheduling.provision import Provisioned, provisioned_key
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY, Desired, SegmentRequest
from curtail_pipeline.stages import site_keepers
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.times import utc_now
from sensors.provisioning import provisioning_sensor

TOOL = """#!/bin/sh
echo "$2 $1" >> {folder}/calls
test -e {folder}/no-quota && echo "no quota for $1" && exit 4
test $2 = up && touch {folder}/$1.up || rm -f {folder}/$1.up
"""


def sensed(path: Path) -> str:
    with dg.build_sensor_context(
        resources={"pipeline": PipelineResource(experiment=str(path), clock="replay")}
    ) as context:
        found = provisioning_sensor(context)
    assert isinstance(found, dg.SkipReason)
    return str(found.skip_message)


class Fleet:
    """NORTH is started by a command; whoever it has started shows life as a trainer does."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance) -> None:
        self.folder, self.instance, self.pid = folder, instance, 0
        tool = folder / "tool.sh"
        tool.write_text(TOOL.format(folder=folder))
        tool.chmod(0o755)
        command = {"kind": "command", "start": f"{tool} {{site}} up", "stop": f"{tool} {{site}} down"}
        sites: list[dict[str, Any]] = [dict(site) for site in EXPERIMENT["sites"]]
        sites[0]["provisioner"] = command
        self.path = prepared(folder, "threshold", sites=sites)
        store = Project.open(self.path, "replay").store
        assert isinstance(store, FolderStore)
        self.store = store

    def tick(self, minute: float) -> dg.SensorResult:
        return tick_at(self.path, self.store, START + timedelta(minutes=minute), self.instance)

    def state(self) -> str:
        return self.store.read_record(MEMBERSHIP_KEY, Desired).states["NORTH"]

    def beat(self) -> None:
        if (self.folder / "NORTH.up").exists():
            self.pid += 1
            self.store.write_record(agent_key("NORTH"), Heartbeat(site="NORTH", pid=self.pid, at=utc_now(), busy=False))

    def reached(self, phase: str) -> bool:
        self.beat()
        key = provisioned_key("NORTH")
        return self.store.exists(key) and self.store.read_record(key, Provisioned).phase == phase

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture(autouse=True)
def ended_keepers() -> Iterator[None]:
    """The threads of a test's sites end with it; in a code server they stay."""
    yield
    for _, keeper in site_keepers._KEEPERS.values():
        keeper.close()
        keeper.join(60)
    site_keepers._KEEPERS.clear()


def test_warm_and_off_are_what_a_site_really_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    with dg.DagsterInstance.ephemeral() as instance:
        fleet = Fleet(tmp_path, instance)
        fleet.tick(5)
        assert fleet.state() == "off" and sensed(fleet.path) == "wanted up: no site"
        result = fleet.tick(20)  # its window is open, and it is not up yet
        assert not result.run_requests and fleet.state() == "off" and sensed(fleet.path) == "wanted up: NORTH"
        wait_until(lambda: fleet.reached("up"), 120, "a site that is up")
        (request,) = fleet.tick(21).run_requests or []
        assert request.tags["curtail/members"] == "NORTH" and fleet.state() == "train"

        running = segment_run(instance, "ckpt-000001")
        fleet.tick(105)  # its window is closed, and its round is on its way: it stays up
        assert fleet.state() == "warm" and sensed(fleet.path) == "wanted up: NORTH"
        instance.report_run_failed(running)
        fleet.tick(106)
        assert fleet.state() == "off" and sensed(fleet.path) == "wanted up: no site"
        wait_until(lambda: fleet.reached("off"), 120, "a site that is off")
        assert fleet.calls() == ["up NORTH", "down NORTH"]
        measured = fleet.store.read_record(provisioned_key("NORTH"), Provisioned).start_up_s
        assert measured is not None and 0 < measured < 30


def test_one_that_cannot_be_started_is_away_and_the_others_train(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    with dg.DagsterInstance.ephemeral() as instance:
        fleet = Fleet(tmp_path, instance)
        (tmp_path / "no-quota").touch()
        (request,) = fleet.tick(60).run_requests or []  # NORTH and SOUTH are curtailed
        assert request.tags["curtail/members"] == "SOUTH"
        sensed(fleet.path)

        def failures() -> int:
            key = provisioned_key("NORTH")
            known = fleet.store.read_record(key, Provisioned) if fleet.store.exists(key) else Provisioned()
            return known.failed.times if known.failed else 0

        wait_until(lambda: failures() == 2, 120, "two failures")
        (request,) = fleet.tick(61).run_requests or []
        away = fleet.store.read_record("segments/ckpt-000001.json", SegmentRequest).away["NORTH"]
        assert request.tags["curtail/members"] == "SOUTH"
        assert "its start failed 2 times in a row" in away and "ended with 4; it said: no quota for NORTH" in away
