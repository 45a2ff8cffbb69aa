"""Flower runs whose processes are lost: who follows them is told, and they are replaced."""

import os
import signal
import time
from pathlib import Path

import pytest
from stub_federation import plan, undisturbed
from waiting import wait_until

from curtail_pipeline.federation.orders import Plan
from curtail_pipeline.federation.progress import Resubmitted, SegmentEvent, StepDone, Submitted
from curtail_pipeline.flower import ended_app
from curtail_pipeline.flower.local import Federation, LocalFederation
from curtail_pipeline.flower.submit import submit_and_follow
from curtail_pipeline.storage.folder_store import FolderStore

pytestmark = pytest.mark.long


@pytest.mark.parametrize("part", ["superlink", "flwr-serverapp"])
def test_a_lost_run_is_replaced_and_goes_on_behind_what_it_merged(
    federation: LocalFederation, handle: Federation, store: FolderStore, part: str, tmp_path: Path
) -> None:
    """Of stopped ones, which take longer to be missed; killed ones are among the faults of `test_chaos_run.py`."""
    rounds = [{"CA": 1, "TX": 1}, {"CA": 25, "TX": 25}]  # 5 s, of which the caller looks at the steps every 2 s
    key = plan(store, f"ckpt-0000{20 + len(part)}", rounds, seed=7)
    hit: list[float] = []
    events: list[SegmentEvent] = []

    def strike(event: SegmentEvent) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.round == 1 and not hit:
            state = federation.status()
            pids = {p.command: p.pid for p in state.spawned} | {"superlink": state.superlink.pid}
            os.kill(pids[part], signal.SIGSTOP)
            hit.append(time.monotonic())

    segment = submit_and_follow(handle, key, store, strike)
    assert hit and time.monotonic() - hit[0] < 40
    assert len({event.run_id for event in events if isinstance(event, Submitted)}) == 2
    assert [type(event) for event in events].count(Resubmitted) == 1
    expected = undisturbed(store.read_record(key, Plan), tmp_path)
    assert segment.weights.sha256 == expected.weights.sha256 and segment.sites == expected.sites


def test_apps_that_were_killed_are_spoken_for(
    federation: LocalFederation, handle: Federation, store: FolderStore
) -> None:
    """Flower itself waits for 60 s of silence: the node of a ClientApp, and who follows a ServerApp that merges."""
    killed: dict[str, float] = {}
    resubmitted: list[str] = []

    def kill(event: SegmentEvent) -> None:
        if isinstance(event, Resubmitted):
            resubmitted.append(event.reason)
        app = ended_app.CLIENT_APP if ended_app.SERVER_APP in killed else ended_app.SERVER_APP
        if isinstance(event, StepDone) and app not in killed:
            (pid, *_) = [p.pid for p in federation.status().spawned if p.command == app]
            os.kill(pid, signal.SIGKILL)
            killed[app] = time.monotonic()

    submit_and_follow(handle, plan(store, "ckpt-000018", [{"CA": 25, "TX": 25}] * 2, seed=7), store, kill)
    (reason,) = resubmitted
    assert "failed: it was ended by signal 9" in reason
    assert submit_and_follow(handle, plan(store, "ckpt-000019", [{"CA": 1, "TX": 1}]), store).steps == 2
    assert time.monotonic() - killed[ended_app.CLIENT_APP] < 30
    wait_until(lambda: ended_app.SPEAKER not in [p.command for p in federation.status().spawned])
