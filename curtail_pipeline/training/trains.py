"""Who does the work that a site's orders ask for."""

from collections.abc import Callable
from typing import Protocol

from curtail_pipeline.federation.orders import Order, Phase, Result
from curtail_pipeline.training.step_progress import Progress


class Trains(Protocol):
    """Who does the work (`SiteTrainer`)."""

    @property
    def name(self) -> str:
        """Of the site."""

    def train(
        self,
        order: Order,
        progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
        on_phase: Callable[[Phase], None] = ...,
    ) -> Result: ...

    def has(self, key: str) -> bool:
        """Whether what it has made of an order under this key is in the store, or on its way there."""

    def close(self) -> None:
        """End the processes on the site's other devices, where there are any; the next order starts them again."""
