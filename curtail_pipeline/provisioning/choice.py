"""From a site's settings to its provisioner."""

from collections.abc import Callable, Sequence

from curtail_pipeline.provisioning.child import ChildSite
from curtail_pipeline.provisioning.command_lines import CommandLines
from curtail_pipeline.provisioning.provisioner import Provisioner, Standing
from curtail_pipeline.provisioning.stateful_set import StatefulSetSite
from curtail_pipeline.settings.provisioner_settings import (
    CommandProvisioner,
    KubernetesProvisioner,
    NoProvisioner,
    SubprocessProvisioner,
)
from curtail_pipeline.settings.sites import Site


class NothingProvisioned:
    """`none`: somebody else starts the site."""

    def start(self, site: str) -> None: ...

    def stop(self, site: str) -> None: ...

    def state(self, site: str) -> Standing:
        return Standing("unknown")


SiteCommand = Callable[[SubprocessProvisioner, str], Sequence[str]]
"""The command line that runs a site."""


def provisioner_of(site: Site, command: SiteCommand) -> Provisioner:
    """The one that the site's settings name.

    Args:
        command: of a site that is a child of this process.

    Raises:
        ProvisionError: what it needs is not installed, or its address is not to be had.
    """
    settings = site.provisioner
    match settings:
        case NoProvisioner():
            return NothingProvisioned()
        case SubprocessProvisioner():
            return ChildSite(command(settings, site.name))
        case KubernetesProvisioner():
            return StatefulSetSite(settings)
        case CommandProvisioner():
            return CommandLines(settings)
