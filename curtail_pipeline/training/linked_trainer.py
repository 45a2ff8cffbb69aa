"""The trainer of a site that has nothing yet: no credentials of the store and no experiment. Orders bring both."""

import json
import os
from collections.abc import Callable

from curtail_pipeline.emissions.meter import make_meter
from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.orders import Order, Phase, Result
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.storage.store import Store
from curtail_pipeline.training.step_progress import Progress
from curtail_pipeline.training.trainer import SiteTrainer


class LinkedTrainer:
    """A `SiteTrainer`, made of the first order's experiment, and anew when an order brings another one.

    Args:
        store: the site's own, for inner states and what orders bring.
        name: of the site.
    """

    def __init__(self, store: Store, name: str) -> None:
        self._own, self._name = store, name
        self._experiment: Experiment | None = None
        self._trainer: SiteTrainer | None = None

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
            meter = make_meter(experiment.site(self.name), os.cpu_count() or 1)
            self._experiment = experiment
            self.close()
            self._trainer = SiteTrainer(self._own, self.name, experiment, meter=meter)
        return self._trainer.train(order, progress, should_stop, on_phase)

    def has(self, key: str) -> bool:
        return self._trainer.has(key) if self._trainer else self._own.exists(key)

    def close(self) -> None:
        if self._trainer is not None:
            self._trainer.close()
