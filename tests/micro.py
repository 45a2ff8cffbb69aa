"""The micro experiment: every mode of the pipeline in under a minute, on a trace written by hand."""

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import yaml
from commands import run_here, run_python

ROOT = Path(__file__).resolve().parent.parent
START = datetime(2026, 5, 1, tzinfo=UTC)
HOURS = 4
CURTAILED = {"NORTH": [(10, 100)], "SOUTH": [(50, 160)], "EAST": [(180, 200)]}
"""Minutes from START in which a region's signal is low. NORTH alone, NORTH and SOUTH, SOUTH alone, pause, EAST."""

EXPERIMENT: dict[str, Any] = {
    "name": "micro",
    "seed": 3,
    "replay": {"speed": 240},
    "sites": [
        {"name": name, "region": name, "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.004} for name in CURTAILED
    ],
    "overheads": {"provisioning_s": 240, "connect_s": 10, "round_load_s": 2, "round_tail_s": 4, "outer_step_s": 2},
    "policy": {"name": "paper"},
    "rounds": {"round_s": 1200, "max_rounds": 2},
    "job": {"steps": 400},
    "corpus": {"vocab_size": 512, "sample_mib": 0.2, "heldout_fraction": 0.05, "max_documents": 400},
    "training": {
        "preset": "tiny",
        "model_overrides": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
        },
        "sequence_length": 64,
        "device_batch_sequences": 4,
        "total_batch_tokens": 512,
        "evaluation_sequences": 32,
    },
}


def signal(region: str, minute: int, curtailed: dict[str, list[tuple[int, int]]] = CURTAILED) -> float:
    return 20.0 if any(start <= minute < end for start, end in curtailed[region]) else 500.0


def write_trace(path: Path, curtailed: dict[str, list[tuple[int, int]]] = CURTAILED) -> Path:
    rows = ["time," + ",".join(curtailed)]
    for minute in range(0, HOURS * 60, 5):
        stamp = START + timedelta(minutes=minute)
        rows.append(stamp.isoformat() + "," + ",".join(f"{signal(region, minute, curtailed)}" for region in curtailed))
    path.write_text("\n".join(rows) + "\n")
    return path


@cache
def texts() -> str:
    """JSON lines: what `help()` says of Python's topics. The embedded text takes 3 s of processor time to collect."""
    paragraphs = "\n\n".join(topics[name] for name in sorted(topics)).split("\n\n")
    documents = ["\n\n".join(paragraphs[at : at + 5]) for at in range(0, len(paragraphs), 5)]
    return "\n".join(json.dumps({"text": text}) for text in documents)


def write_experiment(folder: Path, curtailed: dict[str, list[tuple[int, int]]] = CURTAILED, **changes: Any) -> Path:
    """The experiment file, with its trace and its texts beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    trace, source = write_trace(folder / "trace.csv", curtailed), folder / "texts.jsonl"
    source.write_text(texts())
    content = {**EXPERIMENT, "traces": {"provider": "file", "path": str(trace)}, **changes}
    content["corpus"] = {"source": str(source), **content["corpus"]}
    path = folder / "micro.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def environment(home: Path) -> dict[str, str]:
    """The environment of a command: no home of the user's, no experiment of another test."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("CURTAIL_", "DAGSTER_"))}
    return {**clean, "CURTAIL_HOME": str(home)}


def curtail(
    *words: str, home: Path, timeout: float = 900, more: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, forked; `more` goes into its environment."""
    variables = {**environment(home), **(more or {})}
    return run_python("-m", "curtail_pipeline.cli.main", *words, env=variables, timeout=timeout, torch=True)


def curtail_here(*words: str, home: Path, more: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process: a command that is refused, or that neither trains nor starts anything.

    A process of its own would first import for a second or two of processor time.
    """
    return run_here(words, {**environment(home), **(more or {})})


def start_curtail(*words: str, home: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Start the command line; its output goes to a file."""
    command = [sys.executable, "-m", "curtail_pipeline.cli.main", *words]
    with log.open("wb") as stream:
        return subprocess.Popen(command, env=environment(home), stdout=stream, stderr=subprocess.STDOUT)
