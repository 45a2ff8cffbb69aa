"""The trainer of a site that has nothing yet: no credentials of the store and no experiment. Orders bring both."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from curtail_pipeline.emissions.meter import make_meter
from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.orders import Order, Phase, Result
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.step_progress import Progress, StepProgress
from curtail_pipeline.training.trainer import SiteTrainer

if TYPE_CHECKING:
    from curtail_pipeline.training.metrics import StepReporter


class LinkedTrainer:
    """A `SiteTrainer`, made of the first order's experiment, and anew when an order brings another one.

    Args:
        store: the site's own, for inner states and what orders bring.
        name: of the site.
        endpoint: beside which its steps are shown as the experiment says (`dashboards`); not at all when not given.
    """

    def __init__(self, store: Store, name: str, endpoint: Path | None = None) -> None:
        self._own, self._name, self._endpoint = store, name, endpoint
        self._experiment: Experiment | None = None
        self._trainer: SiteTrainer | None = None
        self._reporter: StepReporter | None = None

    @property
    def name(self) -> str:
        return self._name

    def train(
        self,
        order: Order,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_phase: Callable[[Phase], None] = lambda phase: None,
    ) -> Result:
        """As `SiteTrainer.train`.

        Raises:
            TrainingError: the order brings no addresses.
            SettingsError: the experiment does not know this site.
        """
        on_phase("fetch")
        if order.links is None:
            raise TrainingError(
                f"site {self.name} was started without a store and its order brings no addresses; name it in "
                "federation.linked, or start it with --store"
            )
        key = order.experiment_uri
        experiment = parse_experiment(json.loads(order.links.read(key)), key)
        if self._trainer is None or experiment != self._experiment:
            self.close()
            self._trainer = self._made(experiment)
            self._experiment = experiment
        return self._trainer.train(order, progress, should_stop, on_phase)

    def _made(self, experiment: Experiment) -> SiteTrainer:
        site = experiment.site(self.name)
        meter = make_meter(site, os.cpu_count() or 1)
        if self._endpoint is not None:
            from curtail_pipeline.training.dashboards import reporter_of  # which starts threads: not before a fork

            self._reporter = reporter_of(self._own, site, experiment, meter, self._endpoint)
        return SiteTrainer(self._own, site, experiment, meter=meter)

    def report(self, order: Order, told: StepProgress) -> None:
        """Show a step."""
        if self._reporter is not None:
            self._reporter(order, told)

    def has(self, key: str) -> bool:
        return self._trainer.has(key) if self._trainer else self._own.exists(key)

    def close(self) -> None:
        if self._trainer is not None:
            self._trainer.close()
        if self._reporter is not None:
            self._reporter.close()
        self._trainer = self._reporter = self._experiment = None
