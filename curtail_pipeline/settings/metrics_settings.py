"""Where a trainer shows its steps beside its JSON lines."""

from typing import Literal

from pydantic import Field

from curtail_pipeline.settings.section import Section


class MetricsSettings(Section):
    prometheus_port: int | None = Field(default=None, ge=1024, le=65_535)
    """Port on the loopback address where the first site's trainer answers Prometheus; the next site's has the next
    port. Needs `pip install 'curtail_pipeline[metrics]'`. None is opened when not given."""
    tensorboard: bool = False
    """Event files in `federation/trainers/SITE.tensorboard` of the home. Needs `curtail_pipeline[tensorboard]`."""
    wandb: str | None = Field(default=None, min_length=1)
    """Project of Weights & Biases in which each site's trainer has a run. Needs `curtail_pipeline[wandb]`."""
    wandb_mode: Literal["online", "offline"] = "online"
    """Offline, runs are files in `federation/trainers/SITE.wandb`, which `wandb sync` sends."""
