"""A local federation whose trainers are stubs, and what is left of it."""

import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from safetensors.numpy import save_file

from curtail_pipeline.federation.orders import Plan, Segment
from curtail_pipeline.federation.rounds import run_segment
from curtail_pipeline.federation.simulated import MemoryTransport, SimulatedSite
from curtail_pipeline.flower.local import LocalFederation
from curtail_pipeline.flower.run_config import FlowerValue, RunConfig
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.federation_settings import LivenessLimits
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.store import file_sha256

STUB = [sys.executable, str(Path(__file__).parents[1] / "federation_stub_trainer.py")]
SITES = ("CA", "TX")
PER_STEP = 4


def experiment(sites: Sequence[str] = SITES) -> Experiment:
    power = {"training_kw": 1.0, "idle_kw": 0.1, "steps_per_s": 1.0}
    return parse_experiment(
        {
            "name": "stub",
            "traces": {"provider": "synthetic", "start": "2026-01-01T00:00:00Z"},
            "sites": [{"name": site, "region": site, **power} for site in sites],
            "job": {"steps": 100},
            "federation": {"start_timeout_s": 90, "liveness_s": 8},
        },
        "stub",
    )


def asking(store: FolderStore, key: str) -> dict[str, FlowerValue]:
    """The run config of a segment whose nodes are not known."""
    return RunConfig(store=str(store.root), plan=key, nodes={}, limits=LivenessLimits(liveness_s=8)).to_flower()


def new_store(home: Path) -> FolderStore:
    store = FolderStore(home / "store")
    weights = store.path("checkpoints/ckpt-000000/model.safetensors")
    weights.parent.mkdir(parents=True)
    random = np.random.default_rng(0)
    save_file({"a": random.standard_normal((9, 4)).astype(np.float32)}, weights, {"format": "pt"})
    return store


def plan(
    store: FolderStore, key: str, rounds: list[dict[str, int]], seed: int = 0, attempt: int = 1, **changes: Any
) -> str:
    """Write a plan; its key."""
    members = [site for site in SITES if any(site in steps for steps in rounds)]
    weights = "checkpoints/ckpt-000000/model.safetensors"
    cursor = dict.fromkeys(members, 0)
    planned = []
    for index, steps in enumerate(rounds):
        lease = {site: [[1, cursor[site], cursor[site] + PER_STEP * count]] for site, count in steps.items()}
        cursor.update({site: part[0][2] for site, part in lease.items()})
        planned.append({"index": index, "steps": steps, "lease": lease})
    plan_key = f"scratch/{key}/{attempt}/plan.json"
    store.write_json(
        plan_key,
        {
            "schema": 1,
            "key": key,
            "attempt": attempt,
            "members": members,
            "mode": "federated" if len(members) > 1 else "local",
            "parent": {
                "key": "ckpt-000000",
                "weights": weights,
                "sha256": file_sha256(store.path(weights)),
                "config": "checkpoints/ckpt-000000/config.json",
            },
            "first_step": 0,
            "total_steps": 1000,
            "seed": seed,
            "rounds": planned,
            "outer": {"lr": 0.7, "momentum": 0.9},
            "norm_bound": 5.0,
        }
        | changes,
    )
    return plan_key


def processes_of(federation: LocalFederation) -> list[psutil.Process]:
    supervisor = psutil.Process(federation.status().pid)
    return [supervisor, *supervisor.children(recursive=True)]


def ports_of(family: list[psutil.Process]) -> set[int]:
    found = set()
    for process in family:
        try:
            found |= {c.laddr.port for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        except psutil.Error:
            continue
    return found


def gone(family: list[psutil.Process]) -> bool:
    return not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)


def listening(ports: set[int]) -> set[int]:
    def open_(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return {port for port in ports if open_(port)}


def undisturbed(asked: Plan, home: Path) -> Segment:
    """What a plan comes to in memory, in a store apart: simulated sites give signs of life too."""
    store = new_store(home)
    sites = {site: SimulatedSite(site, store) for site in SITES}
    return run_segment(MemoryTransport(sites, store), asked, store)
