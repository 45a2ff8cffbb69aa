"""The code location as a whole: names, partitions, checks, jobs; and that loading it is light."""

import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
from micro import environment, write_experiment

from curtail_pipeline.definitions import defs
from curtail_pipeline.orchestration.partitions import CHECKPOINTS, DAYS, EXPERIMENT
from curtail_pipeline.signals.checks import CHECKS
from curtail_pipeline.stages.check_tokens import TOKEN_LEDGER
from curtail_pipeline.stages.project import Project


@pytest.fixture(scope="module")
def repository() -> dg.RepositoryDefinition:
    return defs.get_repository_def()


def names(keys: object) -> set[str]:
    return {key.to_user_string() for key in keys}  # type: ignore[attr-defined]


def test_the_asset_graph(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    parents = {key.to_user_string(): names(graph.get(key).parent_keys) for key in graph.get_all_asset_keys()}
    assert parents == {
        "carbon_traces": set(),
        "trace_ingestion": set(),
        "curtailment_windows": {"trace_ingestion", "carbon_traces", "curtailment_windows"},
        "tokenizer": set(),
        "training_shards": {"tokenizer", "carbon_traces"},
        "heldout_shard": {"tokenizer", "carbon_traces"},
        "aggregated_checkpoint": {"curtailment_windows", "training_shards"},
        "checkpoint_evaluation": {"aggregated_checkpoint", "heldout_shard"},
        "emissions_ledger": {"aggregated_checkpoint", "carbon_traces"},
        "emissions_report": {"emissions_ledger", "curtailment_windows"},
        "what_if": {"carbon_traces", "curtailment_windows"},
    }


def test_partitions(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph

    def partitions(name: str) -> dg.PartitionsDefinition | None:
        return graph.get(dg.AssetKey(name)).partitions_def

    traces = partitions("carbon_traces")
    assert isinstance(traces, dg.MultiPartitionsDefinition)
    assert {part.name for part in traces.partitions_defs} == {"day", "region"}
    assert dg.MultiPartitionKey({"day": "2026-03-21", "region": "NEM_SA"}) in traces.get_partition_keys()
    for name in ("curtailment_windows", "what_if"):
        assert isinstance(partitions(name), dg.DailyPartitionsDefinition)
    shards = partitions("training_shards")
    assert shards is not None
    assert shards.get_partition_keys() == [site.name for site in EXPERIMENT.sites]
    for name in ("aggregated_checkpoint", "checkpoint_evaluation", "emissions_ledger"):
        found = partitions(name)
        assert isinstance(found, dg.DynamicPartitionsDefinition) and found.name == "checkpoints"
    for name in ("tokenizer", "heldout_shard", "emissions_report"):
        assert partitions(name) is None


def test_jobs_sensor_and_schedules(repository: dg.RepositoryDefinition) -> None:
    jobs = {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")}
    assert {"daily_pipeline", "intraday_pipeline", "local_training", "federated_rounds"} <= jobs
    (sensor,) = [found for found in repository.sensor_defs if found.name == "membership_sensor"]
    assert {target.job_name for target in sensor.targets} == {"local_training", "federated_rounds", "prepare"}
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED, "a fresh UI must not start training unasked"
    schedules = {found.name: found.job_name for found in repository.schedule_defs}
    assert schedules == {"daily_pipeline_schedule": "daily_pipeline", "intraday_schedule": "intraday_pipeline"}


def test_traces_are_guarded_by_blocking_checks(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    checks = {
        key.name: graph.get(key) for key in graph.asset_check_keys if key.asset_key == dg.AssetKey("carbon_traces")
    }
    assert checks.keys() == CHECKS.keys()
    assert all(check.blocking for check in checks.values())


def test_the_token_ledger_is_a_blocking_check_of_the_checkpoint(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    key = dg.AssetCheckKey(dg.AssetKey("aggregated_checkpoint"), TOKEN_LEDGER)
    assert key in graph.asset_check_keys and graph.get(key).blocking
    for name in ("local_training", "federated_rounds"):
        selected = repository.get_job(name).asset_layer.asset_graph.asset_check_keys
        assert key in selected, f"{name} would train on after a ledger that does not add up"


def test_everything_explains_itself(repository: dg.RepositoryDefinition) -> None:
    graph = repository.asset_graph
    for key in graph.get_all_asset_keys():
        node = graph.get(key)
        assert node.description, key
        assert node.group_name != "default", key
        assert node.owners, key
    named = [*repository.sensor_defs, *repository.schedule_defs]
    named += [job for job in repository.get_all_jobs() if not job.name.startswith("__")]
    assert [found.name for found in named if not found.description] == []


def test_the_definitions_load_and_bind() -> None:
    dg.Definitions.validate_loadable(defs)


_WATCHED = """
import sys
opened = []
sys.addaudithook(lambda event, found: opened.append(str(found[0])) if event == "open" else None)
import curtail_pipeline.definitions
from curtail_pipeline.orchestration.partitions import DAYS
print(DAYS.get_partition_keys())
print([name for name in opened if name.endswith("trace.csv")])
print([name for name in ("torch", "flwr", "transformers", "altair") if name in sys.modules])
"""


def test_loading_the_location_opens_no_trace_file_and_imports_neither_torch_nor_flower(tmp_path: Path) -> None:
    """Its days come from the index that opening the home has left."""
    project = Project.open(write_experiment(tmp_path), "headless", tmp_path / "home")
    chosen = {"CURTAIL_EXPERIMENT": str(project.home.experiment_file)}
    found = subprocess.run(
        [sys.executable, "-c", _WATCHED],
        env=environment(tmp_path) | chosen,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.stdout.splitlines() == ["['2026-05-01']", "[]", "[]"], found.stderr


def test_the_report_follows_every_ledger_and_not_every_window() -> None:
    """Windows are derived every five minutes; the daily job orders the report after them."""
    report, cursor, asked = dg.AssetKey("emissions_report"), None, []
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_dynamic_partitions(str(CHECKPOINTS.name), ["ckpt-000001"])
        for asset, partition in (
            (None, None),
            ("curtailment_windows", DAYS.get_partition_keys()[0]),
            ("emissions_ledger", "ckpt-000001"),
        ):
            if asset is not None:
                instance.report_runless_asset_event(dg.AssetMaterialization(asset, partition=partition))
            found = dg.evaluate_automation_conditions(
                defs=defs, instance=instance, asset_selection=dg.AssetSelection.assets(report), cursor=cursor
            )
            cursor = found.cursor
            asked.append(found.get_num_requested(report))
    assert asked == [0, 0, 1]
