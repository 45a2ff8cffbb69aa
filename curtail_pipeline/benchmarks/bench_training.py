"""Training speed of a preset on one device: tokens per second through the site trainer, data and storage included.

The tokens are random: what is timed does not depend on what they say.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from curtail_pipeline.corpus.tokenizer import save_tokenizer, train_bpe
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.storage.store import Store, file_sha256
from curtail_pipeline.tokens.ranges import Ranges


class _Random:
    """Sequences of random tokens, made once."""

    def __init__(self, vocab_size: int, sequences: int, sequence_length: int) -> None:
        self._rows = np.random.default_rng(0).integers(vocab_size, size=(sequences, sequence_length + 1))

    def batches(self, ranges: Ranges, sequences_per_batch: int, seed: int) -> Iterator[np.ndarray]:
        while True:
            yield self._rows


def run(
    *,
    preset: str = "tiny",
    vocab_size: int = 4096,
    sequence_length: int = 256,
    total_batch_tokens: int = 4096,
    device_batch_sequences: int = 16,
    device: str = "cpu",
    threads: int = 1,
    dtype: str = "float32",
    compile: bool = False,
    steps: int = 20,
    rounds: int = 3,
) -> dict[str, Any]:
    """Train a few rounds and time them.

    Returns:
        tokens_per_s and step_s (median over the steps after the first round), round_overhead_s (loading, snapshots and
        weights of a later round; median), parameters, peak GPU memory in MiB (null on a CPU), and what was run.
    """
    import torch

    from curtail_pipeline.training.presets import init_checkpoint, model_config, parameter_count
    from curtail_pipeline.training.trainer import SiteTrainer

    experiment = parse_experiment(
        {
            "name": "benchmark",
            "traces": {"provider": "synthetic", "start": "2026-01-01T00:00:00Z"},
            "sites": [
                {"name": "S", "region": "S", "training_kw": 1, "idle_kw": 1, "steps_per_s": 1}
                | {"device": device, "threads": threads}
            ],
            "job": {"steps": 1_000_000},
            "training": {
                "preset": preset,
                "sequence_length": sequence_length,
                "total_batch_tokens": total_batch_tokens,
                "device_batch_sequences": device_batch_sequences,
                "model_overrides": {"vocab_size": vocab_size},
                "dtype": dtype,
                "compile": compile,
            },
        },
        "benchmark",
    )
    settings = experiment.training
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder) / "store")
        store.write_json("experiment.json", experiment.model_dump(mode="json"))
        save_tokenizer(train_bpe(["text"], 512, "<|bos|>"), Path(folder) / "tokenizer", "<|bos|>")
        init_checkpoint(settings, Path(folder) / "tokenizer", store.path("init"), seed=0)
        trainer = SiteTrainer(
            store, "S", experiment, _Random(vocab_size, experiment.sequences_per_step, sequence_length)
        )
        parent = {"key": "init/model.safetensors", "sha256": file_sha256(store.path("init/model.safetensors"))}
        inner, step_s, overhead_s = "fresh", [], []
        for number in range(rounds):
            ends: list[float] = []
            start = time.perf_counter()
            result = trainer.train(
                {
                    "key": "ckpt-000001",
                    "attempt": 0,
                    "round": number,
                    "site": "S",
                    "experiment_uri": "experiment.json",
                    "store": str(store.root),
                    "parent": parent,
                    "config": "init/config.json",
                    "inner_state": inner,
                    "first_step": number * steps,
                    "members": 1,
                    "total_steps": 1_000_000,
                    "max_steps": steps,
                    "deadline_s": None,
                    "lease": [[1, 0, steps * experiment.sequences_per_step]],
                    "seed": 0,
                    "out": f"round-{number}.safetensors",
                },
                lambda _, ends=ends: ends.append(time.perf_counter()),  # type: ignore[misc]
            )
            took = time.perf_counter() - start
            print(f"round {number}: {result['tokens_per_s']:.0f} tokens/s, {took:.2f} s", file=sys.stderr)
            parent = {"key": result["weights"]["key"], "sha256": result["weights"]["sha256"]}
            inner = result["inner_state"]["end"]
            if number:
                step_s += [b - a for a, b in pairwise(ends)]
                overhead_s.append(took - result["seconds"])
        cuda = torch.device(device).type == "cuda"
        step = statistics.median(step_s)
        return {
            "tokens_per_s": round(total_batch_tokens / step, 1),
            "step_s": round(step, 4),
            "round_overhead_s": round(statistics.median(overhead_s), 4),
            "parameters": parameter_count(model_config(settings, vocab_size)),
            "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
            "preset": preset,
            "device": device,
            "threads": threads,
            "dtype": dtype,
            "compile": compile,
            "steps": steps,
        }
