"""SuperExecs of a SuperLink or SuperNode that no supervisor looks after: whether the one it started is still there.

Flower starts one and never looks at it again; without it no message reaches a ClientApp and no run a ServerApp.
"""

import psutil

COMMAND = "flower-superexec"


class SuperExecWatch:
    """Of one SuperLink or SuperNode."""

    def __init__(self, owner: int) -> None:
        self._owner = owner
        self._seen = False

    def ended(self) -> bool:
        """Whether there was one, and is none any more. To be asked about once a second."""
        there = self._there()
        self._seen = self._seen or there
        return self._seen and not there

    def _there(self) -> bool:
        try:
            return any(_runs_it(child) for child in psutil.Process(self._owner).children())
        except psutil.NoSuchProcess:
            return False


def _runs_it(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and any(COMMAND in word for word in process.cmdline())
    except psutil.Error:
        return False
