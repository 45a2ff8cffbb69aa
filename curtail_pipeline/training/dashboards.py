"""Where a site's trainer shows its steps: as its experiment says, TensorBoard and Weights & Biases among it.

These two get live steps alone, and their packages are extras.
"""

from pathlib import Path
from typing import Literal

from curtail_pipeline.emissions.meter import Meter
from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.metrics import (
    JsonLines,
    PresentSignal,
    Prometheus,
    Sink,
    StepMetrics,
    StepReporter,
    shown,
)


class TensorBoard:
    """Event files of scalars by global step, in a folder that `tensorboard --logdir` reads.

    Raises:
        TrainingError: the package is not installed.
    """

    FLUSH_S = 10

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise TrainingError(
                "metrics.tensorboard is set and tensorboard is not installed; "
                "pip install 'curtail_pipeline[tensorboard]', or take the setting out"
            ) from None
        self._writer = SummaryWriter(str(folder), flush_secs=self.FLUSH_S)

    def __call__(self, metrics: StepMetrics) -> None:
        if metrics.replay:  # which has the steps of the live segment once more
            return
        for name, value in shown(metrics).items():
            self._writer.add_scalar(f"{metrics.site}/{name}", value, metrics.step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run in a project, named after the site.

    Args:
        project: of W&B; whose it is and how to get there is told by its own variables (`WANDB_API_KEY`, ...).
        site: its name.
        folder: where the run's files are.
        mode: `offline` only writes files, which `wandb sync` sends later.

    Raises:
        TrainingError: the package is not installed, or the run cannot be begun.
    """

    def __init__(self, project: str, site: str, folder: Path, mode: Literal["online", "offline"]) -> None:
        try:
            import wandb
        except ImportError:
            raise TrainingError(
                "metrics.wandb is set and wandb is not installed; "
                "pip install 'curtail_pipeline[wandb]', or take the setting out"
            ) from None
        folder.mkdir(parents=True, exist_ok=True)
        settings = wandb.Settings(console="off", silent=True)
        try:
            self._run = wandb.init(project=project, name=site, dir=str(folder), mode=mode, settings=settings)
        except wandb.Error as error:
            raise TrainingError(
                f"metrics.wandb: {project} cannot be written to ({' '.join(str(error).split())}); set WANDB_API_KEY, "
                "or metrics.wandb_mode: offline"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def __call__(self, metrics: StepMetrics) -> None:
        if not metrics.replay:
            self._run.log({"step": metrics.step, "round": metrics.round, **shown(metrics)})

    def close(self) -> None:
        self._run.finish()


def reporter_of(store: Store, site: Site, experiment: Experiment, meter: Meter, endpoint: Path) -> StepReporter:
    """Writes lines beside the trainer's endpoint file, and whatever else the experiment's `metrics` say.

    Raises:
        TrainingError: a package is missing, a port taken, or a run cannot be begun.
    """
    settings = experiment.metrics
    sinks: list[Sink] = [JsonLines(endpoint.with_suffix(".steps.jsonl"))]
    if (port := settings.prometheus_port) is not None:
        sinks.append(Prometheus(port + [each.name for each in experiment.sites].index(site.name)))
    if settings.tensorboard:
        sinks.append(TensorBoard(endpoint.with_suffix(".tensorboard")))
    if settings.wandb is not None:
        folder = endpoint.with_suffix(".wandb")
        sinks.append(WeightsAndBiases(settings.wandb, site.name, folder, settings.wandb_mode))
    return StepReporter(site, meter, PresentSignal(store, site.region), sinks)
