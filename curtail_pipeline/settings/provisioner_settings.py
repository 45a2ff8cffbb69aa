"""Settings of what starts a site ahead of its windows and stops it after them; `site.provisioner` in an experiment."""

import shlex
from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from curtail_pipeline.settings.section import Section

KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")]
"""A DNS subdomain, as Kubernetes names objects (RFC 1123)."""


def _runnable(line: str) -> str:
    try:
        words = shlex.split(line)
        fields = [field for _, field, _, _ in Formatter().parse(line) if field is not None]
    except ValueError as error:
        raise ValueError(f"is no command line: {error}; write a brace that is no placeholder twice") from None
    if not words:
        raise ValueError("is empty; give a command line")
    strange = [field for field in fields if field != "site"]
    if strange:
        raise ValueError(f"has the placeholder {{{strange[0]}}}; there is {{site}} alone")
    return line


CommandLine = Annotated[str, AfterValidator(_runnable)]


class _Started(Section):
    start_timeout_s: float = Field(default=900.0, gt=0)
    """From the order to start until the site is connected; later it counts as failed."""


class NoProvisioner(Section):
    """The site is started by somebody else, and is there or is not."""

    kind: Literal["none"] = "none"


class SubprocessProvisioner(_Started):
    """`curtail site run` as a child of the code location: sites on this machine, or for trials."""

    kind: Literal["subprocess"]
    superlink: str | None = Field(default=None, pattern=r"^[^\s/:]+:\d{1,5}$")
    """host:port of the SuperLink; `CURTAIL_SUPERLINK` when not given."""
    ca: str | None = None
    """Certificate of who vouches for the SuperLink; `CURTAIL_CA` when not given."""
    key: str | None = None
    """The site's private key; needed with `ca`."""


class KubernetesProvisioner(_Started):
    """A StatefulSet that is scaled from 0 to 1 and back. Needs the extra `curtail_pipeline[kubernetes]`."""

    kind: Literal["kubernetes"]
    stateful_set: KubernetesName
    namespace: KubernetesName = "default"
    context: str | None = None
    """Of the kubeconfig; the current one when not given, and the pod's own account inside a cluster."""
    kubeconfig: str | None = None
    """`KUBECONFIG` or `~/.kube/config` when not given."""


class CommandProvisioner(_Started):
    """Two command lines, so that any tool may do it. `{site}` in them and `CURTAIL_SITE` are the site's name."""

    kind: Literal["command"]
    start: CommandLine
    """Ends with 0 once the site is on its way; it may be called for a site that is there."""
    stop: CommandLine
    """Ends with 0 once the site is given back; it may be called for a site that is not there."""
    env: dict[str, str] = Field(default_factory=dict)
    """Variables beside those of this process; of these, what belongs to its own Python is left out."""
    timeout_s: float = Field(default=900.0, gt=0)
    """For one command; it is killed then, with what it started."""


ProvisionerSettings = Annotated[
    NoProvisioner | SubprocessProvisioner | KubernetesProvisioner | CommandProvisioner, Field(discriminator="kind")
]
