"""The centralised reference of an experiment: one site trains on all of its text, with the same seed and schedule.

    curtail bench central

Writes `settings/central_curves.json`, which the last lines of `curtail run` compare a run of the same experiment with.
"""

import os
import platform
import re
import tempfile
from pathlib import Path

from curtail_pipeline import __version__
from curtail_pipeline.benchmarks.quality_arms import Stretch
from curtail_pipeline.benchmarks.quality_run import train
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.central_curve import CURVES_FILE, CentralCurve, CentralCurves, identity_of
from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.settings.sites import SITE_NAME
from curtail_pipeline.stages.central_reference import heldout_text
from curtail_pipeline.storage.atomic import write_whole
from curtail_pipeline.storage.records import Json
from curtail_pipeline.times import iso, utc_now

SITE = "CENTRAL"
"""The only one, with all of the text."""


def run(
    experiment: str = "laptop", steps: int = 400, every: int = 8, out: str | None = None, site: str = SITE
) -> dict[str, Json]:
    """Train and write; 0.35 s of processor time per step of the laptop experiment.

    Args:
        experiment: name or file.
        steps: how far; the schedule is that of the whole job.
        every: steps between two points of the curve.
        out: the file; the product's own when not given.
        site: name of the only site, which the order of the text depends on.

    Returns:
        `settings.central_curve.CentralCurves`, as it was written.
    """
    import torch

    if not re.fullmatch(SITE_NAME, site):
        raise SettingsError(f"{site!r} is no name of a site: 1 to 64 letters, digits, _ and -")
    torch.set_num_threads(1)
    own = load_experiment(experiment)
    alone = own.model_copy(update={"sites": [own.sites[0].model_copy(update={"name": site})]})
    stretches = [Stretch(rounds=({site: min(every, steps - done)},)) for done in range(0, steps, every)]
    with tempfile.TemporaryDirectory(prefix="curtail-central-") as folder:
        found = train(alone, {site: 1.0}, stretches, Path(folder))
        text = heldout_text(found.store)
    curve = CentralCurve(
        experiment=own.name,
        identity=identity_of(own),
        heldout=text,
        tokens=tuple(step * own.training.total_batch_tokens for step in found.steps),
        losses=tuple(round(loss, 5) for loss in found.losses),
    )
    curves = CentralCurves(
        command=f"curtail bench central --experiment {experiment} --steps {steps} --every {every}"
        + (f" --site {site}" if site != SITE else ""),
        date=iso(utc_now().replace(microsecond=0)),
        machine=f"{os.cpu_count()} cores of a {platform.machine()} machine, {platform.system()}",
        version=__version__,
        curves=(curve,),
    )
    write_whole(Path(out or CURVES_FILE), curves.model_dump_json(indent=1).encode() + b"\n")
    return curves.model_dump(mode="json")
