"""A real `dagster dev` on a replayed trace: daemon, webserver and federation, from an empty home to federated rounds.

The tests share one UI and follow each other in its time: NORTH trains first, then nobody, then SOUTH and EAST together.
"""

import os
import signal
from collections.abc import Iterator
from datetime import timedelta

import dagster as dg
import pytest
from micro import EXPERIMENT, START, write_experiment, write_trace
from waiting import wait_until
from web_ui import WebUi, web_ui
from whole_runs import manifests, processes_of

from curtail_pipeline.federation.orders import Plan
from curtail_pipeline.federation.plan import REPLAYS
from curtail_pipeline.orchestration.run_workers import worker_of
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import Manifest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

SPEED = 20.0
NOTICED_S = 60.0
CURTAILED = {"NORTH": [(0, 15)], "SOUTH": [(30, 240)], "EAST": [(30, 240)]}
"""Minutes; a site goes on for ten more."""


@pytest.fixture(scope="module")
def ui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebUi]:
    home = tmp_path_factory.mktemp("ui")
    experiment = write_experiment(
        home / "input",
        replay={"speed": SPEED},
        clock={"start": (START + timedelta(minutes=2)).isoformat()},
        rounds={"round_s": 200, "max_rounds": 2},  # 20 s; a run takes as much processor time however long it is
        overheads={"provisioning_s": 0, "connect_s": 0},
        sites=[{**site, "steps_per_s": 0.02} for site in EXPERIMENT["sites"]],
        job={"steps": 200_000},  # more than it gets to; every order says which text is left for them
    )
    write_trace(home / "input" / "trace.csv", CURTAILED)
    with web_ui(home, experiment) as found:
        yield found
    wait_until(lambda: not processes_of(home), 120, "the end of every process of the UI and the federation")


@pytest.fixture(scope="module")
def instance(ui: WebUi) -> Iterator[dg.DagsterInstance]:
    folder = ui.home / "micro" / "dagster"
    wait_until(ui.sensor, 600, "the UI")  # two processes must not make the instance's tables at once
    before = os.environ.get("CURTAIL_EXPERIMENT")
    os.environ["CURTAIL_EXPERIMENT"] = str(ui.home / "micro" / "experiment.yaml")
    with dg.DagsterInstance.from_config(str(folder)) as found:
        yield found
    os.environ.pop("CURTAIL_EXPERIMENT")
    if before is not None:
        os.environ["CURTAIL_EXPERIMENT"] = before


def committed(ui: WebUi) -> dict[str, Manifest]:
    return {key: found for key, found in manifests(ui.home).items() if found.mode != "init"}


def live_run(instance: dg.DagsterInstance, key: str) -> dg.DagsterRun | None:
    """The run of this segment, if it is under way."""
    wanted = dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags={"curtail/checkpoint": key})
    return next(iter(instance.get_runs(wanted)), None)


def is_submitted(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether a segment's log says that it is a Flower run now."""
    return any("submitted as Flower run" in entry.user_message for entry in instance.all_logs(run_id))


def training_run(ui: WebUi, instance: dg.DagsterInstance) -> dg.DagsterRun | None:
    """The run of the segment that trains; the one before may still evaluate what it has committed."""
    (*_, last) = manifests(ui.home)
    return live_run(instance, f"ckpt-{int(last.removeprefix('ckpt-')) + 1:06d}")


def undisturbed(found: Manifest, ui: WebUi) -> bool:
    """Every round went on until its time was up, and the segment until its cap or a change of membership."""
    journal = (ui.home / "micro" / "store" / "checkpoints" / found.key / "rounds.jsonl").read_text()
    whole = found.stop_reason != "length cap" or found.rounds == 2
    left = "leaves" in found.stop_reason
    return whole and "lost" not in found.stop_reason and ('"membership"' not in journal or left)


def replayed(instance: dg.DagsterInstance, run_id: str) -> dict[str, object]:
    """What a run on demand recorded, and whether its check passed."""
    logs = instance.all_logs(run_id)
    events = [entry.dagster_event for entry in logs if entry.dagster_event is not None]
    (made,) = [e.step_materialization_data.materialization for e in events if e.is_step_materialization]
    checks = {e.asset_check_evaluation_data.check_name: e.asset_check_evaluation_data for e in events
              if e.event_type is dg.DagsterEventType.ASSET_CHECK_EVALUATION}  # fmt: skip
    found: dict[str, object] = {name: value.value for name, value in made.metadata.items()}
    return {**found, "check": checks["replay_identical"].passed}


def replayed_well(ui: WebUi, instance: dg.DagsterInstance, run_id: str, key: str) -> None:
    assert ui.ended(run_id, 400) == "SUCCESS"
    found, manifest = replayed(instance, run_id), committed(ui)[key]
    assert found["identical"] is True and found["check"] is True
    whole = manifest.files["model.safetensors"].sha256
    assert found["replay"] == {"committed_sha256": whole, "replayed_sha256": whole}
    assert found["replayed weights"] == found["committed weights"] == whole[:12]
    assert found["replayed_steps"] == manifest.steps.end - manifest.steps.begin > 0
    assert isinstance(found["seconds"], float) and found["seconds"] > 0


def test_the_sensor_prepares_an_empty_home_and_two_at_once_give_one_result(
    ui: WebUi, instance: dg.DagsterInstance
) -> None:
    wait_until(lambda: ui.sensor().get("status") == "RUNNING", 600, "a running membership sensor in the UI")
    (first,) = wait_until(lambda: instance.get_runs(dg.RunsFilter(job_name="prepare")), 600, "the sensor's request")
    second = ui.launch("prepare")
    assert ui.status(first.run_id) != "SUCCESS", "too late to be at once"
    assert [ui.ended(run_id) for run_id in (first.run_id, second)] == ["SUCCESS", "SUCCESS"]
    assert list(manifests(ui.home))[:1] == ["ckpt-000000"]
    for name in ("carbon_traces", "curtailment_windows", "tokenizer", "training_shards", "aggregated_checkpoint"):
        assert instance.get_latest_materialization_event(dg.AssetKey(name)) is not None, name
    for name, shown in (("tokenizer", "vocabulary"), ("checkpoint_evaluation", "held-out loss (nat/token)")):
        event = instance.get_latest_materialization_event(dg.AssetKey(name))
        assert event is not None and event.asset_materialization is not None
        assert shown in event.asset_materialization.metadata, "as when the asset is materialised by itself"


def test_a_replay_waits_for_the_live_segments_of_its_site(ui: WebUi, instance: dg.DagsterInstance) -> None:
    wait_until(lambda: committed(ui), 600, "the first segment")
    assert committed(ui)["ckpt-000001"].members == ["NORTH"]
    run_id = ui.materialise("ckpt-000001")
    assert ui.pools(run_id) == {"on_demand", "site/NORTH"}
    replayed_well(ui, instance, run_id, "ckpt-000001")
    assert all(undisturbed(found, ui) for found in committed(ui).values())


def test_the_same_key_at_once_beside_a_live_segment_and_a_worker_is_killed(
    ui: WebUi, instance: dg.DagsterInstance
) -> None:
    wait_until(lambda: any(found.mode == "federated" for found in committed(ui).values()), 600, "a federated segment")
    before = set(committed(ui))
    live = wait_until(lambda: training_run(ui, instance), 600, "a live segment")
    runs = [ui.materialise("ckpt-000001") for _ in range(2)]

    def worker() -> tuple[str, int] | None:
        at_work = [run_id for run_id in runs if ui.status(run_id) == "STARTED"]
        found = worker_of(instance, at_work[0]) if at_work else None
        return (at_work[0], found[0]) if found else None

    killed, pid = wait_until(worker, 600, "a replay at work")
    (other,) = set(runs) - {killed}
    assert ui.status(other) == "QUEUED", "one at a time at its site"
    os.kill(pid, signal.SIGKILL)
    assert ui.ended(killed, NOTICED_S) == "FAILURE"
    replayed_well(ui, instance, other, "ckpt-000001")
    assert set(ui.pool_limits()) == {"on_demand", "site/NORTH", "site/SOUTH", "site/EAST"}
    wait_until(lambda: live.tags["curtail/checkpoint"] in committed(ui), 600, "the end of the live segment")
    after = {key: found for key, found in committed(ui).items() if key not in before}
    assert after and all(found.mode == "federated" and undisturbed(found, ui) for found in after.values())
    assert not FolderStore(ui.home / "micro" / "store").list(REPLAYS), "scratch was left behind"


def test_terminating_the_live_segment_pauses_until_it_is_executed_again(
    ui: WebUi, instance: dg.DagsterInstance
) -> None:
    def terminated() -> dg.DagsterRun | None:
        run = training_run(ui, instance)
        if run is not None:
            ui.terminate(run.run_id)
            assert ui.ended(run.run_id) in ("CANCELED", "SUCCESS")
        # on a busy machine it may have committed before the word reached it: then there is nothing to pause
        return run if run and run.tags["curtail/checkpoint"] not in committed(ui) else None

    live = wait_until(terminated, 600, "a segment that was terminated while it trained")
    key = live.tags["curtail/checkpoint"]
    said = wait_until(lambda: "terminated" in ui.skip_reason() and ui.skip_reason(), 600, "the sensor's reason")
    assert f"paused: run {live.run_id[:8]} of {key} was terminated" in said and "re-execute that run" in said
    ticks = instance.get_runs_count(dg.RunsFilter(tags={"curtail/checkpoint": key}))
    assert live_run(instance, key) is None
    again = ui.execute_again(live.run_id)
    assert ui.ended(again) == "SUCCESS"
    assert instance.get_runs_count(dg.RunsFilter(tags={"curtail/checkpoint": key})) >= ticks + 1
    wait_until(lambda: key in committed(ui), 600, "the segment")
    following = f"ckpt-{int(key.removeprefix('ckpt-')) + 1:06d}"
    wait_until(lambda: following in committed(ui), 600, "the segment after it, by the sensor alone")


def test_a_killed_run_worker_is_noticed_and_its_segment_taken_up(ui: WebUi, instance: dg.DagsterInstance) -> None:
    def worker() -> tuple[dg.DagsterRun, int] | None:
        run = training_run(ui, instance)
        found = worker_of(instance, run.run_id) if run else None
        return (run, found[0]) if run and found and is_submitted(instance, run.run_id) else None

    live, pid = wait_until(worker, 600, "a worker that follows a Flower run")
    key = live.tags["curtail/checkpoint"]
    os.kill(pid, signal.SIGKILL)
    assert ui.ended(live.run_id, NOTICED_S) == "FAILURE"
    wait_until(lambda: key in committed(ui), 600, "the segment all the same")
    plan = FolderStore(ui.home / "micro" / "store").read_record(f"checkpoints/{key}/plan.json", Plan)
    assert (committed(ui)[key].attempt, plan.attempt) == (2, 1), "what was trained already was trained again"
    assert undisturbed(committed(ui)[key], ui)


def test_the_report_is_refreshed_after_a_segment(ui: WebUi, instance: dg.DagsterInstance) -> None:
    """By declarative automation alone."""

    def newest(asset: str) -> dg.EventLogEntry | None:
        return instance.get_latest_materialization_event(dg.AssetKey(asset))

    accounted = newest("emissions_ledger")
    assert accounted is not None

    def refreshed() -> dg.EventLogEntry | None:
        report = newest("emissions_report")
        return report if report and report.timestamp > accounted.timestamp else None

    report = wait_until(refreshed, 600, "the report")
    assert report is not None
    run = instance.get_run_by_id(report.run_id)
    assert run is not None and run.tags["dagster/from_automation_condition"] == "true"


def test_every_checkpoint_counts_what_it_trained(ui: WebUi) -> None:
    found = committed(ui)
    assert {"local", "federated"} <= {manifest.mode for manifest in found.values()}
    assert all(manifest.tokens.segment > 0 and manifest.intervals for manifest in found.values())
