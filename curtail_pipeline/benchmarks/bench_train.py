"""Training speed of a preset on a site's devices: tokens per second through its trainer, data and storage included.

    curtail bench train --device cuda --preset d20 --dtype bfloat16 --compile --sequence-length 2048 ...

The tokens are random: what is timed does not depend on what they say. What only a GPU can tell is null on a CPU. With
`--hand-written` and `--nanochat FOLDER`, a checkout of nanochat as of October 2025, their steps of equal depth, batch
and length are timed in the same job (`train_references`), before it takes memory of the device itself; on one device,
whatever `--devices` says of the trainer. `--snapshots` times those of a round under way.
"""

import math
import platform
import statistics
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict

import numpy as np

from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.federation_settings import FederationSettings
from curtail_pipeline.storage.records import Json

if TYPE_CHECKING:
    from curtail_pipeline.benchmarks.train_references import ReferenceSpeed
    from curtail_pipeline.benchmarks.train_rounds import Rounds

Parallel = Literal["auto", "ddp", "fsdp"]
"""As a site's setting."""

BINS = 10
CPU_INFO = Path("/proc/cpuinfo")


class Histogram(TypedDict):
    """How many steps took how long."""

    edges_s: list[float]
    """Of the bins, ascending; one more than there are bins."""
    steps: list[int]


class Reference(TypedDict):
    """What was measured of something else in the same job."""

    tokens_per_s: float
    step_s: float
    """Median."""
    mfu: float | None
    peak_mib: int | None


class Compared(TypedDict):
    """This trainer beside others."""

    hand_written: Reference | None
    """The same model in a loop without this package; null where it was not asked for."""
    over_hand_written: float | None
    """This trainer's speed as a multiple of that."""
    nanochat: Reference | None
    over_nanochat: float | None


class Ran(TypedDict):
    """What was run."""

    preset: str
    device: str
    devices: int
    device_name: str
    threads: int
    dtype: str
    compile: bool
    tf32: bool
    deterministic: bool
    steps: int


class Beside(TypedDict):
    """What is beside a round's steps, seconds."""

    fetch_s: float
    """Of a later round: reading weights and optimiser state, and bringing them to the device; median."""
    store_s: float
    """Of a later round: from the end of its last step to its answer, writing both; median."""
    non_training_share: float
    """Share of the later rounds' time that is either."""
    snapshot_s: float | None
    """By how much a snapshot of a round under way made training longer; null without `--snapshots`."""
    slowest_snapshot_s: float | None
    """By how much the slowest step there was longer than the median."""
    snapshot_share: float | None
    """Of the time of training, with a snapshot as often as is the default (`federation.snapshot_minutes`)."""


class Speed(Beside, Compared, Ran):
    """What `run` measured, and of what."""

    tokens_per_s: float
    step_s: float
    """Median over the steps after the first round."""
    step_times: Histogram
    mfu: float | None
    """Model FLOPs utilisation of all devices at the median step, by the formula of `training.throughput`; null where a
    device's peak is not known."""
    parameters: int
    peak_mib: int | None
    """Of the first GPU's memory; null on a CPU."""
    estimated_mib: int
    """What `training.memory` says beforehand, of each device; with `parallel` auto as if each had the whole model."""


def run(
    *,
    preset: str = "tiny",
    vocab_size: int = 4096,
    sequence_length: int = 256,
    total_batch_tokens: int = 4096,
    device_batch_sequences: int = 16,
    device: str = "cpu",
    devices: int = 1,
    parallel: Parallel = "auto",
    threads: int = 1,
    dtype: str = "float32",
    compile: bool = False,
    tf32: bool = False,
    deterministic: bool = True,
    steps: int = 20,
    rounds: int = 3,
    hand_written: bool = False,
    nanochat: str | None = None,
    snapshots: bool = False,
) -> Speed:
    """Train a few rounds and time them; with `snapshots` one more, three times as long, in which two are taken.

    Raises:
        SettingsError: `nanochat` is no checkout of it, the preset has no depth to compare at, or there are too few
            steps or rounds to time.
        TrainingError: there are not so many devices.
    """
    import torch

    from curtail_pipeline.benchmarks.train_rounds import require_enough, time_rounds
    from curtail_pipeline.training.memory import estimate
    from curtail_pipeline.training.presets import model_config, parameter_count
    from curtail_pipeline.training.throughput import flops_per_token, mfu, peak_flops

    require_enough(steps, rounds)
    training: dict[str, Json] = {
        "preset": preset, "sequence_length": sequence_length, "total_batch_tokens": total_batch_tokens,
        "device_batch_sequences": device_batch_sequences, "model_overrides": {"vocab_size": vocab_size},
        "dtype": dtype, "compile": compile, "tf32": tf32, "deterministic": deterministic,
    }  # fmt: skip
    experiment = _experiment(training, device, threads, devices, parallel)
    references = _references(hand_written, nanochat, experiment, vocab_size, steps)
    with tempfile.TemporaryDirectory() as folder:
        timed = time_rounds(Path(folder), experiment, vocab_size, steps, rounds, snapshots)
    place = torch.device(device)
    cuda, step = place.type == "cuda", statistics.median(timed.step_s)
    config = model_config(experiment.training, vocab_size)
    counts, edges = np.histogram(timed.step_s, bins=BINS)
    batch = min(device_batch_sequences, experiment.sequences_per_step // devices)
    memory = estimate(config, experiment.training, place.type, batch, devices, parallel == "fsdp")
    speed = total_batch_tokens / step
    flops, peak = flops_per_token(config, sequence_length), peak_flops(place)
    return {
        "tokens_per_s": round(speed, 1),
        "step_s": round(step, 4),
        **_beside_steps(timed),
        "step_times": {"edges_s": [round(float(edge), 5) for edge in edges], "steps": counts.tolist()},
        "mfu": _rounded(mfu(speed, flops, peak, devices)),
        "parameters": parameter_count(config),
        "peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if cuda else None,
        "estimated_mib": round(memory.total / 2**20),
        **_compared(speed, *references, flops, peak),
        **_ran(experiment, steps),
    }


def _beside_steps(timed: "Rounds") -> Beside:
    every_s = 60 * (FederationSettings().snapshot_minutes or math.inf)
    took = timed.snapshot_s
    return {
        "fetch_s": round(statistics.median(timed.fetch_s), 4),
        "store_s": round(statistics.median(timed.store_s), 4),
        "non_training_share": round((sum(timed.fetch_s) + sum(timed.store_s)) / sum(timed.whole_s), 4),
        "snapshot_s": None if took is None else round(took, 4),
        "slowest_snapshot_s": None if timed.slowest_snapshot_s is None else round(timed.slowest_snapshot_s, 4),
        "snapshot_share": None if took is None else round(took / (every_s + took), 5),
    }


def _references(
    hand_written: bool, checkout: str | None, experiment: Experiment, vocab_size: int, steps: int
) -> "tuple[ReferenceSpeed | None, ReferenceSpeed | None]":
    """What was asked for: the hand-written loop's speed, and nanochat's."""
    from curtail_pipeline.benchmarks.train_references import ReferenceTask, measure, require_checkout

    site, training = experiment.sites[0], experiment.training
    if checkout is not None:
        require_checkout(checkout, training.preset)
    loop = ReferenceTask(
        kind="hand_written", checkout=checkout, training=training, vocab_size=vocab_size,
        device=site.device, threads=site.threads, steps=steps,
    )  # fmt: skip
    theirs = loop.model_copy(update={"kind": "nanochat"})
    return measure(loop) if hand_written else None, measure(theirs) if checkout is not None else None


def _compared(
    speed: float,
    loop: "ReferenceSpeed | None",
    theirs: "ReferenceSpeed | None",
    flops: int,
    peak: float | None,
) -> Compared:
    return {
        "hand_written": _beside(loop, flops, peak),
        "over_hand_written": round(speed / loop.tokens_per_s, 3) if loop else None,
        "nanochat": _beside(theirs, flops, peak),
        "over_nanochat": round(speed / theirs.tokens_per_s, 3) if theirs else None,
    }


def _ran(experiment: Experiment, steps: int) -> Ran:
    import torch

    site, training = experiment.sites[0], experiment.training
    cuda = torch.device(site.device).type == "cuda"
    return {
        "preset": training.preset,
        "device": site.device,
        "devices": site.devices,
        "device_name": torch.cuda.get_device_name(site.device) if cuda else cpu_name(),
        "threads": site.threads,
        "dtype": training.dtype,
        "compile": training.compile,
        "tf32": training.tf32,
        "deterministic": training.deterministic,
        "steps": steps,
    }


def _beside(found: "ReferenceSpeed | None", flops: int, peak: float | None) -> Reference | None:
    from curtail_pipeline.training.throughput import mfu

    if found is None:
        return None
    share = _rounded(mfu(found.tokens_per_s, flops, peak))
    return {"tokens_per_s": found.tokens_per_s, "step_s": found.step_s, "mfu": share, "peak_mib": found.peak_mib}


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


def _experiment(
    training: dict[str, Json], device: str, threads: int, devices: int = 1, parallel: Parallel = "auto"
) -> Experiment:
    site: dict[str, Json] = {"name": "S", "region": "S", "training_kw": 1, "idle_kw": 1, "steps_per_s": 1}
    return parse_experiment(
        {
            "name": "benchmark",
            "traces": {"provider": "synthetic", "start": "2026-01-01T00:00:00Z"},
            "sites": [{**site, "device": device, "devices": devices, "parallel": parallel, "threads": threads}],
            "job": {"steps": 1_000_000},
            "training": training,
        },
        "benchmark",
    )


def cpu_name() -> str:
    """What the kernel calls the processor."""
    described = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    names = (line.partition(":")[2].strip() for line in described if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
