"""What a person sees in the web UI, in a real browser; asserts on visible text."""

import re
from pathlib import Path

import pytest
from browser_demo import Demo
from waiting import wait_until

pytest.importorskip("playwright")
from playwright.sync_api import Page, expect

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]

SEGMENT_JOBS = ("local_training", "federated_rounds")
LAUNCH = """
mutation Launch($params: ExecutionParams!) { launchRun(executionParams: $params) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }
"""


expect.set_options(timeout=90_000)


def shoot(page: Page, images: Path | None, name: str) -> None:
    """Keep a picture for the README, once nothing moves."""
    if images is not None:
        expect(page.get_by_text("Loading...")).to_have_count(0)
        page.wait_for_timeout(1500)  # until what slides has slid
        page.screenshot(path=images / f"{name}.png")


def sees(page: Page, *texts: str | re.Pattern[str]) -> None:
    for text in texts:
        expect(page.get_by_text(text).first).to_be_visible()


def checkpoint_page(page: Page, demo: Demo, key: str) -> None:
    page.goto(f"{demo.url}/assets/aggregated_checkpoint?view=partitions&partition={key}")
    sees(page, "Latest materialization")


def launch(demo: Demo, key: str) -> str:
    """Materialise a checkpoint as the Materialize button does; the run's id."""
    selector = {
        "repositoryLocationName": "curtail_pipeline",
        "repositoryName": "__repository__",
        "pipelineName": "__ASSET_JOB",
        "assetSelection": [{"path": ["aggregated_checkpoint"]}],
    }
    tags = [{"key": "dagster/partition", "value": key}]
    params = {"selector": selector, "mode": "default", "runConfigData": {}, "executionMetadata": {"tags": tags}}
    answer = demo.ask(LAUNCH, params=params)["launchRun"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return str(answer["run"]["runId"])


def status(demo: Demo, run_id: str) -> str:
    return next((str(run["status"]) for run in demo.runs() if run["runId"] == run_id), "UNKNOWN")


def live_segment(demo: Demo) -> dict[str, object] | None:
    return next((run for run in demo.runs() if run["jobName"] in SEGMENT_JOBS and run["status"] == "STARTED"), None)


def test_the_asset_graph(page: Page, demo: Demo, images: Path | None) -> None:
    page.goto(f"{demo.url}/asset-groups")
    sees(page, "Global asset lineage", "signals", "corpus", "training", "emissions")
    for group in ("signals", "training"):
        page.goto(f"{demo.url}/locations/curtail_pipeline/asset-groups/{group}")
        sees(page, "curtailment_windows" if group == "signals" else "aggregated_checkpoint")
    shoot(page, images, "asset-group")


def test_a_checkpoint_with_its_picture(page: Page, demo: Demo, images: Path | None) -> None:
    checkpoint_page(page, demo, "ckpt-000004")
    sees(page, "federated", "NORTH, SOUTH", "ckpt-000003", "stop reason", "training loss (nat/token)")
    sees(page, re.compile(r"\d+ rounds, \d+ steps, [\d.]+ k tokens"), "checkpoints/ckpt-000004")
    shoot(page, images, "checkpoint")
    page.get_by_text("[Show Markdown]").first.click()
    picture = page.get_by_role("img", name="ckpt-000004: loss, tokens, power and gCO2 by site")
    expect(picture).to_be_visible()
    size = picture.evaluate("image => [image.naturalWidth, image.naturalHeight]")
    assert size[0] > 400 and size[1] > 150, size
    shoot(page, images, "checkpoint-picture")


def test_the_evaluation_and_the_accounts_of_a_checkpoint(page: Page, demo: Demo) -> None:
    page.goto(f"{demo.url}/assets/checkpoint_evaluation?view=partitions&partition=ckpt-000004")
    sees(page, "held-out loss (nat/token)", "perplexity", "bits per byte")
    page.goto(f"{demo.url}/assets/emissions_ledger?view=partitions&partition=ckpt-000004")
    sees(page, "energy (kWh)", "emissions (gCO2)", "inside curtailment windows", "emissions/ckpt-000004.parquet")


def test_the_sensor_and_the_schedules(page: Page, demo: Demo, images: Path | None) -> None:
    page.goto(f"{demo.url}/locations/curtail_pipeline/sensors/membership_sensor")
    sees(page, "membership_sensor", "Running", "local_training", "federated_rounds")
    sees(page, re.compile(r"Compares the membership|runs? requested"))
    shoot(page, images, "sensor")
    for name in ("daily_pipeline_schedule", "intraday_schedule"):
        page.goto(f"{demo.url}/locations/curtail_pipeline/schedules/{name}")
        sees(page, name, "UTC")


def test_a_segment_tells_its_story(page: Page, demo: Demo, images: Path | None) -> None:
    """The headless run's, from its request to why it ended."""
    run = next(run for run in demo.runs() if run["tags"].get("curtail/checkpoint") == "ckpt-000003")
    page.goto(f"{demo.url}/runs/{run['runId']}")
    sees(page, re.compile("ckpt-000003 from ckpt-000002: local training"), re.compile("NORTH trains"))
    sees(page, re.compile(r"round \d: \d+ steps .*moved"), re.compile("it ended because: SOUTH joins"))
    page.get_by_text(re.compile(r"round \d: \d+ steps .*moved")).first.scroll_into_view_if_needed()
    shoot(page, images, "segment-log")


def test_a_failed_run_says_why(page: Page, demo: Demo) -> None:
    """A key that nobody asked for."""
    wrong = "ckpt-009999"
    added = demo.ask(
        'mutation Add($key: String!) { addDynamicPartition(partitionsDefName: "checkpoints", partitionKey: $key, '
        'repositorySelector: {repositoryName: "__repository__", repositoryLocationName: "curtail_pipeline"}) '
        "{ __typename } }",
        key=wrong,
    )
    assert added["addDynamicPartition"]["__typename"] == "AddDynamicPartitionSuccess", added
    run_id = launch(demo, wrong)
    wait_until(lambda: status(demo, run_id) == "FAILURE", 600, "the failure")
    page.goto(f"{demo.url}/runs/{run_id}")
    sees(page, "Failure", re.compile(f"{wrong} failed: {wrong} was never requested"))


def test_on_demand_twice_in_a_row_while_a_live_segment_runs(page: Page, demo: Demo) -> None:
    live = wait_until(lambda: live_segment(demo), 600, "a live segment")
    for attempt in (1, 2):
        checkpoint_page(page, demo, "ckpt-000002")
        run_id = launch(demo, "ckpt-000002")
        wait_until(lambda run_id=run_id: status(demo, run_id) in ("SUCCESS", "FAILURE"), 300, f"replay {attempt}")
        assert status(demo, run_id) == "SUCCESS", f"replay {attempt}"
        page.goto(f"{demo.url}/runs/{run_id}")
        sees(page, "Success", "replay_identical")
        checkpoint_page(page, demo, "ckpt-000002")
        sees(page, "identical", run_id[:8])
    ended = wait_until(
        lambda: next((run for run in demo.runs() if run["runId"] == live["runId"] and run["endTime"]), None),
        300,
        "the end of the live segment",
    )
    assert ended["status"] == "SUCCESS"
    checkpoint_page(page, demo, ended["tags"]["curtail/checkpoint"])
    sees(page, re.compile(r"4 rounds|leaves|joins"))
