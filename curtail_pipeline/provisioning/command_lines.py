"""A site by two command lines: a cloud's own tool, SkyPilot, a script over ssh."""

import contextlib
import os
import shlex
import signal
import subprocess
import tempfile
from typing import Literal

from curtail_pipeline.provisioning.provisioner import ProvisionError, Standing
from curtail_pipeline.settings.provisioner_settings import CommandProvisioner

SITE_VARIABLE = "CURTAIL_SITE"
OWN_PYTHON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""What would have the tool's Python import this one's packages."""
_TAIL_LINES, _TAIL_CHARS = 5, 500


class CommandLines:
    """What the site is then doing, the tool is not asked: it counts as up while it is connected."""

    def __init__(self, settings: CommandProvisioner) -> None:
        self._settings = settings

    def start(self, site: str) -> None:
        self._run(site, "start", self._settings.start)

    def stop(self, site: str) -> None:
        self._run(site, "stop", self._settings.stop)

    def state(self, site: str) -> Standing:
        return Standing("unknown")

    def _run(self, site: str, what: Literal["start", "stop"], template: str) -> None:
        line = template.format(site=site)
        inherited = {name: value for name, value in os.environ.items() if name not in OWN_PYTHON}
        environment = {**inherited, **self._settings.env, SITE_VARIABLE: site}
        with tempfile.TemporaryFile() as output:
            try:
                # a session of its own, so that what it starts can be ended with it
                child = subprocess.Popen(
                    shlex.split(line),
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise ProvisionError(f"site {site}: cannot {what} it, `{line}`: {error.strerror or error}") from error
            try:
                code = child.wait(self._settings.timeout_s)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()
                raise ProvisionError(
                    f"site {site}: `{line}` took longer than its {self._settings.timeout_s:g} s and was killed; raise "
                    f"provisioner.timeout_s{_said(output.fileno())}"
                ) from None
            if code != 0:
                raise ProvisionError(f"site {site}: `{line}` ended with {code}{_said(output.fileno())}")


def _said(descriptor: int) -> str:
    """The end of what a command wrote, in one line."""
    size = os.fstat(descriptor).st_size
    text = os.pread(descriptor, 8 * _TAIL_CHARS, max(0, size - 8 * _TAIL_CHARS)).decode(errors="replace")
    lines = [line.strip() for line in text.splitlines() if line.strip()][-_TAIL_LINES:]
    return f"; it said: {' | '.join(lines)[-_TAIL_CHARS:]}" if lines else ""
