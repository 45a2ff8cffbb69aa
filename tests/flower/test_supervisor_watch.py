"""Who watches those that nobody started: a stopped supervisor, and SuperExecs below a SuperLink or SuperNode."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
from waiting import wait_until

from curtail_pipeline.flower import supervisor_watch
from curtail_pipeline.flower.federation_state import FederationState
from curtail_pipeline.flower.superexecs import COMMAND, SuperExecWatch
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


def test_a_superexec_that_has_ended_is_missed_once_it_was_there() -> None:
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', 'input()', {COMMAND!r}]); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as owner:
        watch = SuperExecWatch(owner.pid)
        assert not watch.ended()
        wait_until(watch._there, 10)
        assert not watch.ended()
        (child,) = psutil.Process(owner.pid).children()
        child.kill()
        wait_until(watch.ended, 10)
        owner.kill()
