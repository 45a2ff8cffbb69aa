"""What coded and delayed exchange costs in held-out loss, against float32 with the same members, text and schedule.

    curtail bench convergence [--quick] [--membership mci] [--results FOLDER]

The arms are trained as those of `bench quality`, in segments of up to 12 rounds. Names say what is coded: a codec alone
the sites' updates, `down` the merge's step as well, `states` the inner states. `delayed` merges a round while the next
one trains (`rounds.overlap`), `fragments` exchanges a quarter of the weights with each round (`rounds.fragments`), and
`long rounds` all of them after four times the steps, as many bytes by the same codec. With `--results` each arm is kept
when it is done, and a run that was cut off goes on.
"""

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict, get_args

from curtail_pipeline.benchmarks.bench_quality import task_of
from curtail_pipeline.benchmarks.convergence_run import Seed, curve_of, result_of
from curtail_pipeline.benchmarks.quality_arms import Arm, Curve
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.federation_settings import LossyName

FP32 = "fp32"
LONG = "long rounds"
ROUND_STEPS = 8
"""Of a site in a whole round."""
FRAGMENTS = 4
STEP_TOKENS = 1024
"""What is compared is exchange; with more text every arm learns more, and takes as much longer."""


class ArmLosses(TypedDict):
    loss: list[float]
    """At the end, nats per token, by seed."""


class Convergence(TypedDict):
    model: str
    membership: str
    steps: int
    seeds: int
    arms: dict[str, ArmLosses]
    relative_to_fp32: dict[str, float]
    """Mean loss above that of fp32, as a fraction of it."""


def arms(membership: str) -> list[Arm]:
    """All there are, fp32 first."""
    coded: dict[str, dict[str, str | int]] = {FP32: {}}
    coded |= {name: {"upload_codec": name} for name in get_args(LossyName)}
    for name in ("int8", "int4", "int2"):
        coded[f"int2, {name} down"] = {"upload_codec": "int2", "download_codec": name}
    coded |= {f"states {name}": {"state_codec": name} for name in ("int8", "int4", "int2")}
    coded |= {f"delayed {name}": {"upload_codec": name, "overlap": True} for name in ("bf16", "int2")}
    parts = {"fragments": FRAGMENTS}
    coded |= {f"fragments {name}": {"upload_codec": name, **parts} for name in ("bf16", "int4", "int2")}
    coded["delayed fragments int2"] = {"upload_codec": "int2", "overlap": True, **parts}
    settled = [_arm(name, membership, ROUND_STEPS, 12, settings) for name, settings in coded.items()]
    return [*settled, _arm(LONG, membership, FRAGMENTS * ROUND_STEPS, 12 // FRAGMENTS, {})]


def _arm(name: str, membership: str, round_steps: int, max_rounds: int, settings: Mapping[str, str | int]) -> Arm:
    return Arm(
        name=name,
        membership=membership,
        step_tokens=STEP_TOKENS,
        round_steps=round_steps,
        rounds={"max_rounds": max_rounds, **settings},
    )


def run(
    quick: bool = False,
    membership: str = "mci",
    steps: int = 192,
    seeds: int = 3,
    preset: str = "tiny",
    only: str | Sequence[str] = "",
    mci: str | None = None,
    results: str = "",
    workers: int = 2,
) -> Convergence:
    """Measure.

    Args:
        quick: one seed and a fifth of the steps.
        membership: who trains when, as `bench quality` names it.
        only: the name of an arm beside fp32, or several as '["int8","delayed int2"]'; all when empty.
        mci: the published run's trace; the test data's when not given.
        results: folder that keeps each outcome.
        workers: processes, one for each seed at most.

    Raises:
        SettingsError: no such arm, or a trace with too few windows.
    """
    chosen = _chosen(arms(membership), [only] if isinstance(only, str) and only else only)
    trace = Path(mci or Path(os.environ.get("CURTAIL_TEST_DATA", "../shared/data")) / "paper" / "mci.csv")
    count, steps = (1, steps // 5) if quick else (seeds, steps)
    with tempfile.TemporaryDirectory(prefix="curtail-results-") as scratch:
        folder = Path(results or scratch).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        parts = [
            Seed(tasks=tuple(task_of(arm, seed, steps, preset, trace) for arm in chosen), results=str(folder))
            for seed in range(1, count + 1)
        ]
        missing = [part for part in parts if not all(result_of(task, folder).exists() for task in part.tasks)]
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(_train_apart, missing))
        curves = [curve_of(task, folder) for part in parts for task in part.tasks]
    return _summary(curves, membership, steps, count, preset)


def _chosen(known: Sequence[Arm], only: Sequence[str]) -> list[Arm]:
    names = [arm.name for arm in known]
    if unknown := [name for name in only if name not in names]:
        raise SettingsError(f"no arm {unknown[0]!r}; there are {'; '.join(names)}")
    return [arm for arm in known if not only or arm.name in (FP32, *only)]


def _train_apart(part: Seed) -> None:
    """In a process of its own, on one core."""
    command = [sys.executable, "-m", "curtail_pipeline.benchmarks.convergence_run", part.model_dump_json()]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | threads)


def _summary(curves: Sequence[Curve], membership: str, steps: int, seeds: int, preset: str) -> Convergence:
    losses: dict[str, list[float]] = {}
    for curve in curves:
        losses.setdefault(curve.arm, []).append(round(curve.losses[-1], 4))
    base = statistics.fmean(losses[FP32])
    return {
        "model": f"{preset}, {curves[0].parameters} parameters",
        "membership": membership,
        "steps": steps,
        "seeds": seeds,
        "arms": {name: {"loss": found} for name, found in losses.items()},
        "relative_to_fp32": {name: round(statistics.fmean(found) / base - 1, 5) for name, found in losses.items()},
    }
