"""The small experiment that is disturbed: three sites whose windows overlap, half a minute of training."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import yaml

NAME = "chaos"
START = datetime(2026, 5, 1, tzinfo=UTC)
SEQUENCE = 64
"""Tokens."""
STEPS = 60
CURTAILED = {"NORTH": (10, 400), "SOUTH": (60, 460), "EAST": (200, 470)}
"""Minutes from START."""
MINUTES = 480
ROUNDS: Mapping[str, object] = {"round_s": 1200, "max_rounds": 2}
EXPERIMENT: Mapping[str, object] = {
    "name": NAME,
    "seed": 3,
    "sites": [
        {"name": name, "region": name, "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.004} for name in CURTAILED
    ],
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
        "sequence_length": SEQUENCE,
        "device_batch_sequences": 4,
        "total_batch_tokens": 512,
        "evaluation_sequences": 32,
    },
}


CODED: Mapping[str, object] = {"upload_codec": "int8"}
"""Of updates, where rounds overlap or there are fragments."""


def write_experiment(folder: Path, steps: int = STEPS, overlap: bool = False, fragments: int = 1) -> Path:
    """Settings and trace; the settings' file.

    Args:
        steps: the job's. Undisturbed, windows have room for more than three times the usual ones, and for twice as many
            as are asked for: faults cost rounds.
        overlap: whether a round trains while the one before it is merged.
        fragments: of the weights, one of which is exchanged with each round. With several a segment has a round for
            each, and one more.
    """
    longer = max(1.0, steps / 100)
    windows = {name: (start, longer * end) for name, (start, end) in CURTAILED.items()}
    rows = ["time," + ",".join(CURTAILED)]
    for minute in range(0, round(longer * MINUTES), 5):
        wobble = minute // 5 % 7  # a feed that stands still counts as stuck
        values = (f"{20 + wobble if start <= minute < end else 500 + wobble}" for start, end in windows.values())
        rows.append(f"{(START + timedelta(minutes=minute)).isoformat()}," + ",".join(values))
    (folder / "trace.csv").write_text("\n".join(rows) + "\n")
    path = folder / f"{NAME}.yaml"
    traces = {"provider": "file", "path": str(folder / "trace.csv")}
    rounds = {**ROUNDS, **(CODED if overlap or fragments > 1 else {}), "overlap": overlap, "fragments": fragments}
    if fragments > 1:
        rounds["max_rounds"] = fragments + 1
    path.write_text(yaml.safe_dump({**EXPERIMENT, "traces": traces, "rounds": rounds, "job": {"steps": steps}}))
    return path
