"""What every provisioner does."""

from dataclasses import dataclass
from typing import Literal, Protocol

from curtail_pipeline.errors import CurtailError


class ProvisionError(CurtailError):
    """A site that cannot be started or stopped."""


@dataclass(frozen=True)
class Standing:
    """What a provisioner knows of its site, which may not be connected yet."""

    phase: Literal["off", "starting", "on", "unknown"]
    detail: str = ""
    """Why it is off, where that was not asked for."""


class Provisioner(Protocol):
    """Starts and stops one kind of site. Calls may take minutes and may be repeated; each site has a thread for them.

    Raises:
        ProvisionError: of every method; one line that names the site.
    """

    def start(self, site: str) -> None:
        """Set the site on its way."""

    def stop(self, site: str) -> None:
        """Give it back; once this returns it costs nothing, or is about to."""

    def state(self, site: str) -> Standing:
        """What became of it; quick."""
