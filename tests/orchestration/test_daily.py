"""The daily job on an instance: one run over days, and what a region that fails costs."""

from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from pathlib import Path

import dagster as dg
import pytest
from checkpoint_cases import fields

from curtail_pipeline.definitions import build
from curtail_pipeline.emissions.grams import totals
from curtail_pipeline.errors import IncompleteError, TraceError
from curtail_pipeline.orchestration.partitions import DAYS, EXPERIMENT, range_tags
from curtail_pipeline.orchestration.resources import serve_opened
from curtail_pipeline.signals.checks import CHECKS
from curtail_pipeline.stages.account import checkpoint_ledger
from curtail_pipeline.stages.project import CLOCK_ENV, EXPERIMENT_ENV, Project
from curtail_pipeline.storage.tables import ledger_key, read_table, trace_key, windows_key, write_table
from curtail_pipeline.times import midnight

pytestmark = pytest.mark.filterwarnings("ignore:InitResourceContext.dagster_run:DeprecationWarning")  # Dagster's own

KEYS = DAYS.get_partition_keys()
BAD = "SPP_TX"


class Daily:
    """A home of the laptop experiment, an instance, and a provider that refuses what a test says."""

    def __init__(self, folder: Path, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
        self.project, self.instance = Project.open(EXPERIMENT, "headless", folder), instance
        self.refused: set[tuple[str, str]] = set()
        provider, ingest = self.project.provider, self.project.provider.ingest

        def refusing(region, start, end, kind):  # type: ignore[no-untyped-def]
            if (f"{start:%Y-%m-%d}", region) in self.refused:
                raise TraceError(f"{region}: the grid operator answers 503")
            return ingest(region, start, end, kind)

        monkeypatch.setattr(provider, "ingest", refusing)
        serve_opened(self.project)
        monkeypatch.setenv(EXPERIMENT_ENV, str(self.project.home.experiment_file))
        monkeypatch.setenv(CLOCK_ENV, "headless")
        self.defs = build()

    def run(self, job: str, days: Sequence[str]) -> dg.ExecuteInProcessResult:
        return self.defs.resolve_job_def(job).execute_in_process(
            instance=self.instance,
            tags=range_tags(days),
            raise_on_error=False,
        )

    def partitions(self, asset: str) -> set[str]:
        return set(self.instance.get_materialized_partitions(dg.AssetKey(asset)))

    def failures(self, result: dg.ExecuteInProcessResult) -> dict[str, str]:
        return {
            event.step_key: str(event.step_failure_data.user_failure_data or event.step_failure_data.error)
            for event in result.all_events
            if event.is_step_failure and event.step_key
        }


@pytest.fixture
def daily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daily]:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path / "homes"))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Daily(tmp_path / "home", instance, monkeypatch)


def test_one_run_over_days_materialises_and_checks_every_cell(daily: Daily) -> None:
    result = daily.run("daily_pipeline", KEYS)
    assert result.success, daily.failures(result)
    cells = {f"{day}|{region}" for day in KEYS for region in EXPERIMENT.regions}
    assert daily.partitions("carbon_traces") == cells
    for asset in ("trace_ingestion", "curtailment_windows", "what_if"):
        assert daily.partitions(asset) == set(KEYS), asset
    assert not result.asset_materializations_for_node("emissions_report"), "no checkpoint, nothing to report"
    for name in CHECKS:
        key = dg.AssetCheckKey(dg.AssetKey("carbon_traces"), name)
        records = daily.instance.event_log_storage.get_asset_check_execution_history(key, limit=100)
        assert {record.partition for record in records} == cells
        assert all(record.evaluation and record.evaluation.passed for record in records)


def test_a_region_that_fails_costs_that_region(daily: Daily) -> None:
    daily.refused = {(KEYS[1], BAD)}
    result = daily.run("intraday_pipeline", KEYS)
    assert not result.success
    failures = daily.failures(result)
    assert failures.keys() == {"trace_ingestion_every_region_stored"}
    assert "1 of 9" in failures["trace_ingestion_every_region_stored"] and "503" in str(failures)
    store = daily.project.store
    for day in KEYS:
        assert store.exists(windows_key(day))
        for region in EXPERIMENT.regions:
            assert store.exists(trace_key(day, region)) == ((day, region) not in daily.refused)
    windows = read_table(store, windows_key(KEYS[1]))
    open_on_the_day = windows.filter(site=BAD)
    assert open_on_the_day["closed_by"].null_count() == 0
    (event,) = [
        event for event in result.asset_materializations_for_node("curtailment_windows") if event.partition == KEYS[1]
    ]
    hours = event.metadata["hours by site"]
    assert isinstance(hours, dg.TableMetadataValue)
    notes = {record.data["site"]: str(record.data["fails_closed"]) for record in hours.records}
    assert "503" in notes[BAD] and notes["NEM_SA"] == ""


def test_a_hole_is_filled_in_any_order(daily: Daily) -> None:
    """The day that stays bad blocks no later one; repaired, all is as if nothing had been."""
    assert daily.run("intraday_pipeline", KEYS).success
    whole = [read_table(daily.project.store, windows_key(day)) for day in KEYS]
    daily.project.store.delete("traces")
    daily.project.store.delete("windows")
    assert daily.run("intraday_pipeline", KEYS[2:]).success
    assert daily.run("intraday_pipeline", KEYS[:1]).success
    result = daily.run("intraday_pipeline", KEYS[1:2])
    assert result.success
    derived = [event.partition for event in result.asset_materializations_for_node("curtailment_windows")]
    assert sorted(derived) == KEYS[1:], "the day after the hole follows"
    for day, table in zip(KEYS, whole, strict=True):
        assert read_table(daily.project.store, windows_key(day)).equals(table), day


@pytest.mark.slow
def test_a_revised_trace_is_counted_again_and_reported(
    daily: Daily, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one run: the trace replaced, the ledger that it leaves behind, and the report after it."""
    project, (day, *_) = daily.project, KEYS
    assert daily.run("intraday_pipeline", [day]).success
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    start = max(midnight(date.fromisoformat(day)), project.start)
    interval = {"site": BAD, "state": "training", "start": start, "end": start + timedelta(hours=1), "kw": 1.0}
    trained = fields("ckpt-000000", start=start, end=start + timedelta(hours=1), intervals=[interval])
    for site in trained["sites"].values():
        site["tokens"] = trained["tokens"]["segment"] = site["steps"] * project.experiment.training.sequence_length
    for key, content in (("ckpt-000000", fields(start=start, end=start)), ("ckpt-000001", trained)):
        project.checkpoints.commit(key, {"model.safetensors": weights}, content, int(key[-6:]))
        write_table(project.store, ledger_key(key), checkpoint_ledger(project, key))
    before = totals(read_table(project.store, ledger_key("ckpt-000001"))).co2_g
    ingest = project.provider.ingest

    def revised(region, start, end, kind):  # type: ignore[no-untyped-def]
        found = ingest(region, start, end, kind)
        return type(found)(found.trace.with_columns(value=found.trace["value"] * 0.9), found.report)

    monkeypatch.setattr(project.provider, "ingest", revised)
    result = daily.run("daily_pipeline", [day])
    assert result.success, daily.failures(result)
    assert before and totals(read_table(project.store, ledger_key("ckpt-000001"))).co2_g == pytest.approx(0.9 * before)
    logged = [event for event in result.all_events if event.event_type_value == "ASSET_MATERIALIZATION"]
    counted = [event.asset_key.to_user_string() for event in logged if event.asset_key]
    assert counted.index("curtailment_windows") < counted.index("emissions_ledger") < counted.index("emissions_report")
    assert "revised after" not in project.store.path("report/index.html").read_text()


def test_a_day_that_fails_a_check_replaces_nothing(daily: Daily, monkeypatch: pytest.MonkeyPatch) -> None:
    assert daily.run("intraday_pipeline", KEYS[:1]).success
    key = trace_key(KEYS[0], BAD)
    before = daily.project.store.read_bytes(key)
    ingest = daily.project.provider.ingest

    def in_pounds(region, start, end, kind):  # type: ignore[no-untyped-def]
        found = ingest(region, start, end, kind)
        return type(found)(found.trace.with_columns(value=found.trace["value"] * 10_000), found.report)

    monkeypatch.setattr(daily.project.provider, "ingest", in_pounds)
    asset = dg.AssetKey("carbon_traces")
    result = daily.defs.resolve_implicit_global_asset_job_def().execute_in_process(
        instance=daily.instance,
        partition_key=dg.MultiPartitionKey({"day": KEYS[0], "region": BAD}),
        asset_selection=[asset],
        raise_on_error=False,
    )
    assert not result.success and daily.project.store.read_bytes(key) == before
    (record,) = daily.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(asset, "range"), limit=1
    )
    assert record.evaluation and not record.evaluation.passed and record.partition == f"{KEYS[0]}|{BAD}"


def test_an_error_names_each_region_and_the_fix() -> None:
    assert issubclass(IncompleteError, TraceError)
