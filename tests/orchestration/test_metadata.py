"""What the UI shows: units, three significant digits, relative paths, short hashes."""

import re
from collections.abc import Iterable
from pathlib import Path

import dagster as dg
import polars as pl
import pytest
from test_account import project_with_a_hole

from curtail_pipeline.emissions.grams import LEDGER_SCHEMA
from curtail_pipeline.orchestration import metadata
from curtail_pipeline.simulation.policy_table import table_of
from curtail_pipeline.stages.account import checkpoint_ledger
from curtail_pipeline.stages.branch import Branch
from curtail_pipeline.stages.ingest import ingest_day
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.replay_check import Replayed
from curtail_pipeline.training.heldout_loss import Evaluation


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return project_with_a_hole(tmp_path_factory.mktemp("project"), None)


def shown(project: Project) -> dict[str, metadata.Facts]:
    manifest = project.checkpoints.manifest("ckpt-000001")
    ledger = checkpoint_ledger(project, "ckpt-000001")
    evaluation = Evaluation(loss=3.14159, perplexity=23.1, bits_per_byte=1, tokens=9)
    found = ingest_day(project, "SPP_TX", project.days[0])
    replayed = Replayed(manifest, "a" * 64, "b" * 64, 1_800, 61.2345, ())
    return {
        "replay": metadata.replay_metadata(project, replayed),
        "branch": metadata.branch_metadata(project, Branch("two", project.checkpoints, manifest), evaluation),
        "checkpoint": metadata.checkpoint_metadata(project, manifest),
        "ledger": metadata.ledger_metadata(ledger),
        "evaluation": metadata.evaluation_metadata(evaluation),
        "trace": {**metadata.trace_metadata(found), **metadata.table_facts(project, "traces/a/b.parquet", found.table)},
    }


def texts(facts: metadata.Facts) -> Iterable[tuple[str, str]]:
    for name, value in facts.items():
        text = value.value if isinstance(value, dg.MetadataValue) else value
        if isinstance(text, str) and name != "picture":
            yield name, text


def test_no_path_of_this_machine_and_no_whole_hash_is_shown(project: Project) -> None:
    for what, facts in shown(project).items():
        for name, text in texts(facts):
            assert str(project.home.root) not in text, (what, name)
            assert not re.search(r"[0-9a-f]{32}", text), (what, name)


def test_the_whole_hash_is_one_click_away(project: Project) -> None:
    facts = shown(project)["checkpoint"]
    manifest = facts["manifest"]
    assert isinstance(manifest, dg.JsonMetadataValue)
    whole = manifest.data["files"]["model.safetensors"]["sha256"]  # type: ignore[index]
    assert len(whole) == 64 and whole.startswith(str(facts["weights"]))
    facts = shown(project)["replay"]
    assert facts["replay"] == dg.MetadataValue.json({"committed_sha256": "a" * 64, "replayed_sha256": "b" * 64})
    assert (facts["committed weights"], facts["replayed weights"]) == ("a" * 12, "b" * 12)


def test_numbers_have_a_unit_and_three_digits_and_only_what_varies_is_one(project: Project) -> None:
    numbers = {
        what: {name: value for name, value in facts.items() if isinstance(value, int | float)}
        for what, facts in shown(project).items()
    }
    assert {what: sorted(found) for what, found in numbers.items()} == {
        "replay": ["identical", "replayed_steps", "seconds"],
        "branch": ["branch held-out loss (nat/token)"],
        "checkpoint": [],
        "ledger": ["emissions (gCO2)", "energy (kWh)"],
        "evaluation": ["held-out loss (nat/token)"],
        "trace": ["dagster/row_count", "mean marginal intensity (g/kWh)", "missing values"],
    }
    assert numbers["replay"]["seconds"] == 61.2 and numbers["replay"]["identical"] is False
    assert numbers["ledger"]["emissions (gCO2)"] == 5.83
    assert numbers["evaluation"]["held-out loss (nat/token)"] == 3.142


def test_a_checkpoint_has_its_picture_and_says_what_was_trained(project: Project) -> None:
    facts = shown(project)["checkpoint"]
    picture = facts["picture"]
    assert isinstance(picture, dg.MarkdownMetadataValue)
    assert picture.value is not None and picture.value.startswith(
        "![ckpt-000001: loss, tokens, power and gCO2 by site]"
    )
    assert facts["trained"] == "1 rounds, 1,800 steps, 14.4 k tokens"
    assert facts["folder"] == "checkpoints/ckpt-000001"


def test_a_picture_that_cannot_be_drawn_costs_no_checkpoint(tmp_path: Path) -> None:
    project = project_with_a_hole(tmp_path, None)
    project.store.delete("traces")
    facts = metadata.checkpoint_metadata(project, project.checkpoints.manifest("ckpt-000001"))
    picture = facts["picture"]
    assert isinstance(picture, dg.TextMetadataValue)
    assert picture.text is not None and picture.text.startswith("cannot be drawn: no traces")


def test_a_table_says_what_its_columns_are(project: Project) -> None:
    facts = metadata.table_facts(project, "emissions/ckpt-000001.parquet", pl.DataFrame(schema=LEDGER_SCHEMA))
    assert facts["dagster/uri"] == "emissions/ckpt-000001.parquet"
    assert facts["dagster/relation_identifier"] == f"{project.experiment.name}.emissions"
    schema = facts["dagster/column_schema"]
    assert isinstance(schema, dg.TableSchemaMetadataValue)
    columns = {column.name: column.description for column in schema.schema.columns}
    assert [*columns] == [*LEDGER_SCHEMA]
    assert columns["kwh"] == "kWh from the grid and from on-site generation, PUE included"


def test_policies_that_did_not_finish_stand_last_and_without_a_rank() -> None:
    table = table_of(
        [
            {"policy": "threshold", "finished": False, "steps": 9, "job_share": 0.9, "co2_kg": 1.0, "co2_kg_high": 1.0},
            {"policy": "paper", "finished": True, "steps": 10, "job_share": 1.0, "co2_kg": 3.0, "co2_kg_high": 3.0},
            {"policy": "budget", "finished": False, "note": "cannot be kept"},
            {"policy": "forecast", "finished": True, "steps": 10, "job_share": 1.0, "co2_kg": 2.0, "co2_kg_high": 2.0},
        ]
    )
    shown_table = metadata.comparison_metadata(table, None)["policies"]
    assert isinstance(shown_table, dg.TableMetadataValue)
    rows = [record.data for record in shown_table.records]
    assert [(row["policy"], row["rank"]) for row in rows] == [
        ("forecast", 1),
        ("paper", 2),
        ("threshold", None),
        ("budget", None),
    ]
