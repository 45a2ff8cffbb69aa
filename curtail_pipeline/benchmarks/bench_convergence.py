"""What coded exchange costs in held-out loss, against float32 with the same members, tokens and schedule.

    curtail bench convergence [--quick] [--membership mci]

The arms are trained as those of `bench quality`. In the arm that says so the merge's step goes back to the sites coded
too; in the others the weights do.
"""

import os
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict, get_args

from curtail_pipeline.benchmarks.bench_quality import task_of, trained_apart
from curtail_pipeline.benchmarks.quality_arms import Arm
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.federation_settings import LossyName

FP32 = "fp32"
DOWNLOAD = "int2 up, int8 down"


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


def run(
    quick: bool = False,
    membership: str = "mci",
    steps: int = 384,
    seeds: int = 3,
    preset: str = "tiny",
    inner_state: str = "merged",
    only: str = "",
    mci: str | None = None,
    workers: int = 2,
) -> Convergence:
    """Measure; some 70 s of processor time per arm and seed.

    Args:
        quick: one seed and a quarter of the steps.
        membership: who trains when, as `bench quality` names it.
        inner_state: `rounds.inner_state` of all arms.
        only: names of arms beside fp32, separated by commas; all when empty.
        mci: the published run's trace; the test data's when not given.
        workers: processes.

    Raises:
        SettingsError: no such arm, or a trace with too few windows.
    """
    settings = {"inner_state": inner_state}
    known = [Arm(name=FP32, membership=membership, rounds=settings)]
    known += [
        Arm(name=name, membership=membership, rounds={**settings, "upload_codec": name}) for name in get_args(LossyName)
    ]
    both = {**settings, "upload_codec": "int2", "download_codec": "int8"}
    known.append(Arm(name=DOWNLOAD, membership=membership, rounds=both))
    names = [arm.name for arm in known]
    if unknown := [name for name in only.split(",") if name and name not in names]:
        raise SettingsError(f"no arm {unknown[0]!r}; there are {', '.join(names)}")
    arms = [arm for arm in known if not only or arm.name in (FP32, *only.split(","))]
    trace = Path(mci or Path(os.environ.get("CURTAIL_TEST_DATA", "../shared/data")) / "paper" / "mci.csv")
    count, steps = (1, steps // 4) if quick else (seeds, steps)
    tasks = [task_of(arm, seed, steps, preset, trace) for seed in range(1, count + 1) for arm in arms]
    with ThreadPoolExecutor(workers) as pool:
        curves = list(pool.map(trained_apart, tasks))
    losses = {arm.name: [round(c.losses[-1], 4) for c in curves if c.arm == arm.name] for arm in arms}
    base = statistics.fmean(losses[FP32])
    return {
        "model": f"{preset}, {curves[0].parameters} parameters",
        "membership": membership,
        "steps": steps,
        "seeds": count,
        "arms": {name: {"loss": found} for name, found in losses.items()},
        "relative_to_fp32": {n: round(statistics.fmean(found) / base - 1, 5) for n, found in losses.items()},
    }
