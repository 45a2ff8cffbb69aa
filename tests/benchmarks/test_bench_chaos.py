"""What `bench chaos` says of a run is told without the product's own ledger; a real one takes minutes (see docs)."""

import os
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.benchmarks import bench_chaos
from curtail_pipeline.benchmarks.bench_chaos import SEQUENCE, Tally, _figures, _miscounted
from curtail_pipeline.benchmarks.fault_injector import Injector, Part, Phase, Strike, Target
from curtail_pipeline.federation.plan import plan_key, segment_key
from curtail_pipeline.federation.server_life import LifeWriter
from curtail_pipeline.flower.federation_state import STATE_FILE, FederationState
from curtail_pipeline.flower.processes import started_at


def manifest(total: int, **consumed: list[list[Any]]) -> dict[str, Any]:
    sites = {site: {"consumed": ranges} for site, ranges in consumed.items()}
    return {"key": "ckpt-000001", "tokens": {"total": total * SEQUENCE}, "sites": sites}


@pytest.mark.parametrize(
    ("lineage", "says"),
    [
        ([manifest(0), manifest(4, A=[[1, 0, 4]]), manifest(7, A=[[1, 4, 6]], B=[[1, 0, 1]])], None),
        ([manifest(4, A=[[1, 0, 4]]), manifest(6, A=[[2, 0, 2]])], None),  # another pass
        ([manifest(4, A=[[1, 0, 4]]), manifest(5, A=[[1, 3, 5]])], "1 sequences were trained on twice"),
        ([manifest(2, A=[[1, 0, 2]], B=[[1, 1, 2, "A"]])], "1 sequences were trained on twice"),  # a moved range
        ([manifest(5, A=[[1, 0, 4]])], "counts 320 tokens, its lineage trained on 256"),
    ],
)
def test_every_sequence_is_counted_one_by_one(lineage: list[dict[str, Any]], says: str | None) -> None:
    found = _miscounted(lineage)
    assert found is None if says is None else says in (found or "")


def test_kinds_and_phases_are_drawn_evenly() -> None:
    kinds, phases = [*bench_chaos.KINDS, bench_chaos.RUN_KILLED], [*Phase]
    assert {f"kill {part}" for part in Part} < {*kinds} and {f"damage {target}" for target in Target} < {*kinds}
    drawn = {*zip(kinds * len(phases), phases * len(kinds), strict=True)}
    assert len(drawn) == len(kinds) * len(phases), "the numbers share a factor: some pairs would never come"


def test_the_last_line_has_what_was_counted() -> None:
    tally = Tally(losses=[3.5])
    for kind, phase, took in (("a", Phase.TRAIN, 4.0), ("a", Phase.MERGE, 6.0), ("b", Phase.TRAIN, None)):
        tally.strikes.append((kind, Strike(phase, 0.0, "x"), took))
    found = _figures(tally, 7, 3.4)
    assert (found["faults"], found["seed"], found["recovery_median_s"], found["recovery_max_s"]) == (3, 7, 5.0, 6.0)
    assert found["by_phase"] == {"merge": 1, "train": 2} and found["by_setup"] == {"local": 3}
    assert found["by_fault"] == {
        "a": {"count": 2, "overcome": 2, "recovery_median_s": 5.0},
        "b": {"count": 1, "overcome": 0},
    }


def test_phases_are_told_from_what_the_product_publishes(tmp_path: Path) -> None:
    injector = Injector(tmp_path, patience_s=0.2)
    assert injector.phase("CA") is Phase.PROVISIONING
    state = FederationState(state="ready", pid=os.getpid(), created=started_at(os.getpid()) or 0.0)
    (tmp_path / "federation").mkdir()
    (tmp_path / "federation" / STATE_FILE).write_text(state.model_dump_json())
    assert injector.phase("CA") is Phase.BETWEEN_SEGMENTS
    folder, store = "scratch/ckpt-000001/1", injector.store
    store.write_bytes(plan_key(folder), b"{}")
    assert injector.phase("CA") is Phase.BETWEEN_ROUNDS
    update = f"{folder}/round-0000/CA.safetensors"
    store.write_bytes(update, b"weights")
    assert injector.phase("CA") is Phase.REPLY
    strike = injector.at("CA", Phase.REPLY).corrupt(Target.UPDATE)
    assert strike is not None and strike.phase is Phase.REPLY and store.read_bytes(update) == b"weightr"
    LifeWriter(store, folder, lambda: 0.0).beat("merging")
    assert injector.phase("CA") is Phase.MERGE
    store.write_bytes(segment_key(folder), b"{}")
    assert injector.phase("CA") is Phase.COMMIT
    assert injector.at("CA", Phase.TRAIN).kill(Part.SUPERLINK) is None  # nothing to kill
