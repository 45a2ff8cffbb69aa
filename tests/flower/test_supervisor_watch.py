"""Who watches a supervisor, which nobody else does, when it is stopped."""

import os
import signal
import subprocess
import sys

import pytest

from curtail_pipeline.flower import supervisor_watch
from curtail_pipeline.flower.federation_state import FederationState
from curtail_pipeline.flower.supervisor_watch import watched


def test_a_supervisor_that_stays_stopped_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor_watch, "HANGS_S", 0.02)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        state = FederationState(state="ready", pid=process.pid)
        with watched(lambda: state, 0.3):
            os.kill(process.pid, signal.SIGSTOP)
            os.kill(process.pid, signal.SIGCONT)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.6)  # it goes on: it is none that stays stopped
            os.kill(process.pid, signal.SIGSTOP)
            assert process.wait(10) == -signal.SIGKILL
