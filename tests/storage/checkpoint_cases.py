"""Checkpoints without weights of any model."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.store import file_sha256

START = datetime(2026, 1, 11, 17, tzinfo=UTC)


def fields(parent: str | None = None, begin: int = 0, first: int = 0, steps: int = 5, **more: Any) -> dict[str, Any]:
    sites = {}
    if parent:
        state = {"begin": "fresh", "end": "sha256:" + "a" * 64}
        sites = {
            "SPP_TX": {
                "steps": steps,
                "tokens": 8 * steps,
                "consumed": [[1, first, first + steps]],
                "inner_state": state,
            }
        }
    return {
        "parent": parent,
        "mode": "local" if parent else "init",
        "members": [*sites],
        "stop_reason": "length cap" if parent else "initialised",
        "attempt": 0,
        "experiment_sha256": "e" * 64,
        "seed": 1,
        "start": START,
        "end": START + timedelta(minutes=10),
        "steps": {"begin": begin, "end": begin + (steps if parent else 0)},
        "tokens": {"segment": 8 * steps if parent else 0},
        "rounds": 1 if parent else 0,
        "sites": sites,
        "intervals": [],
        **more,
    }


def ledger(consumed: list[Any], **more: Any) -> dict[str, Any]:
    return {"SPP_TX": {"epoch": 1, "consumed": consumed, **more}}


def commit_three(checkpoints: Checkpoints, files: dict[str, Path]) -> None:
    checkpoints.commit("ckpt-000000", files, fields(), 0)
    checkpoints.commit("ckpt-000001", files, fields("ckpt-000000"), 1)
    checkpoints.commit("ckpt-000002", files, fields("ckpt-000001", begin=5, first=5), 2)


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): file_sha256(p) for p in folder.rglob("*") if p.is_file()}
