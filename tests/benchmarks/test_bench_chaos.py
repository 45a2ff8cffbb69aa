"""What `bench chaos` says of a run is told without the product's own ledger; and ten faults of a real one."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_fault_tools import RESULT

from curtail_pipeline.benchmarks.bench_chaos import Even, Tally, _figures, _wanted
from curtail_pipeline.benchmarks.chaos_checks import listening_for, miscounted
from curtail_pipeline.benchmarks.chaos_experiment import CURTAILED, NAME, SEQUENCE, write_experiment
from curtail_pipeline.benchmarks.chaos_faults import kinds_of
from curtail_pipeline.benchmarks.chaos_setups import SETUPS, Local, Part
from curtail_pipeline.benchmarks.fault_injector import Injector, Phase, Strike, Target
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.federation.answered import Answered
from curtail_pipeline.federation.plan import answered_key, plan_key, segment_key
from curtail_pipeline.federation.server_life import LifeWriter
from curtail_pipeline.flower.federation_state import STATE_FILE, FederationState, SuperLinkState
from curtail_pipeline.flower.processes import started_at
from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.times import EPOCH


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
    found = miscounted(lineage, SEQUENCE)
    assert found is None if says is None else says in (found or "")


def test_what_was_drawn_least_is_drawn_next() -> None:
    even = Even([*Phase], random.Random(1))
    for _ in range(5 * len(Phase)):
        even.counts[even.draw()] += 1
    assert {*even.counts.values()} == {5}
    assert even.draw(lambda phase: phase is Phase.MERGE) is Phase.MERGE


def test_every_process_is_hit_in_every_way_in_every_setup() -> None:
    for setup in SETUPS:
        kinds = kinds_of(setup)
        assert {f"kill {part}" for part in Part} | {f"damage {target}" for target in Target} < {*kinds}
        hit = [part for part in Part if setup != "standing" or part is not Part.SUPERVISOR]
        assert {f"stop {part} for {how}" for part in hit for how in ("5 s", "60 s", "ever")} < {*kinds}


def test_kinds_are_picked_by_words_of_their_names() -> None:
    kinds = [*kinds_of("standing")]
    assert _wanted(kinds, "") == kinds
    assert {*_wanted(kinds, "kill superexec,partition of a site for 5 s")} == {
        "kill superexec of the superlink", "kill superexec of a supernode", "partition of a site for 5 s",
    }  # fmt: skip
    with pytest.raises(SettingsError, match="no kind of fault has 'flood' in its name; there are kill trainer, "):
        _wanted(kinds, "flood")


def test_the_last_line_has_what_was_counted() -> None:
    tally = Tally(losses=[3.5, 3.2])
    for kind, phase, took in (("a", Phase.TRAIN, 4.0), ("a", Phase.MERGE, 6.0), ("b", Phase.TRAIN, None)):
        tally.strikes.append(("local", kind, Strike(phase, 0.0, "x"), took))
    found = _figures(tally, 7, 3.4)
    assert (found["faults"], found["seed"], found["recovery_median_s"], found["recovery_max_s"]) == (3, 7, 5.0, 6.0)
    assert found["by_phase"] == {"merge": 1, "train": 2} and found["by_setup"] == {"local": 3}
    assert found["heldout_loss"] == 3.2, "the loss furthest from that of the undisturbed run"
    assert found["by_fault"] == {
        "a": {"count": 2, "overcome": 2, "recovery_s": [4.0, 6.0]},
        "b": {"count": 1, "overcome": 0, "recovery_s": []},
    }


def test_fragments_each_have_a_round_before_the_last_one(tmp_path: Path) -> None:
    rounds = load_experiment(write_experiment(tmp_path, fragments=3)).rounds
    assert (rounds.fragments, rounds.max_rounds, rounds.upload_codec, rounds.overlap) == (3, 4, "int8", False)
    assert load_experiment(write_experiment(tmp_path)).rounds.upload_codec == "fp32"


def start_federation(injector: Injector) -> None:
    """As far as its state says."""
    state = FederationState(
        state="ready",
        pid=os.getpid(),
        created=started_at(os.getpid()) or 0.0,
        superlink=SuperLinkState(ready=True),
    )
    folder = injector.setup.federation.folder
    folder.mkdir(parents=True)
    (folder / STATE_FILE).write_text(state.model_dump_json())


def test_phases_are_told_from_what_the_product_publishes(tmp_path: Path) -> None:
    injector = Injector(Local(tmp_path, write_experiment(tmp_path), NAME, [*CURTAILED]), patience_s=0.2)
    assert injector.phase("CA") is Phase.PROVISIONING
    start_federation(injector)
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


def test_phases_are_those_of_the_round_that_trains_while_another_one_is_merged(tmp_path: Path) -> None:
    injector = Injector(Local(tmp_path, write_experiment(tmp_path, overlap=True), NAME, [*CURTAILED]))
    start_federation(injector)
    folder, store = "scratch/ckpt-000001/1", injector.store
    store.write_bytes(plan_key(folder), b"{}")
    answered = Answered(
        index=0, start=EPOCH, end=EPOCH, first_step=None, members=2, stops={}, orders={}, results={"CA": RESULT},
        refused={}, lost={"TX": "no heartbeat"}, overdue={}, wall_s=1.0,
    )  # fmt: skip
    store.write_record(answered_key(folder), answered)
    assert injector.phase("CA") is Phase.UPLOAD and injector.phase("TX") is Phase.BETWEEN_ROUNDS
    store.write_bytes(f"{folder}/round-0000/CA.safetensors", b"weights")
    assert injector.phase("CA") is Phase.BETWEEN_ROUNDS
    store.write_bytes(f"{folder}/round-0001/CA.safetensors", b"weights")
    assert injector.phase("CA") is Phase.REPLY


def test_only_ports_of_a_runs_own_processes_count(tmp_path: Path) -> None:
    """Numbers are given out again: somebody else's server is nothing that a run left."""
    program = (
        "import socket, sys; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1]); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-uc", program],
        env={**os.environ, "CURTAIL_HOME": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert listening_for(tmp_path) == {port}
        assert listening_for(tmp_path / "other") == set()
        process.communicate()
    assert listening_for(tmp_path) == set()
