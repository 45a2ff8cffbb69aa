"""A site as a child process: started once, stopped, and gone with whoever started it, however that ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import wait_until

from curtail_pipeline.flower.processes import is_alive
from curtail_pipeline.provisioning.child import ChildSite

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture(params=["heeded", "ignored"])
def told(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether this process ends at SIGTERM; one in the background, in which Dagster has run, does not."""
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if request.param == "ignored" else signal.SIG_DFL)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("told")
def test_a_child_is_started_once_and_stopped() -> None:
    site = ChildSite(SLEEPS)
    assert site.state("fresno").phase == "off"
    site.start("fresno")
    pid = site.pid
    site.start("fresno")
    assert pid and site.pid == pid and site.state("fresno").phase == "on"
    words = Path(f"/proc/{pid}/cmdline")
    wait_until(lambda: words.read_bytes().split(b"\0")[2:3] == [SLEEPS[2].encode()], what="its program")
    began = time.monotonic()
    site.stop("fresno")
    assert not is_alive(pid) and site.state("fresno").phase == "off"
    assert time.monotonic() - began < 30, "it was asked to end, and ended by itself"
    site.stop("fresno")


def test_one_that_ends_says_why() -> None:
    site = ChildSite([sys.executable, "-c", "print('a line'); raise SystemExit('no key')"])
    site.start("fresno")
    wait_until(lambda: site.state("fresno").phase == "off", what="its end")
    assert site.state("fresno").detail == "its process ended with 1: no key"


def test_it_does_not_outlive_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from curtail_pipeline.provisioning.child import ChildSite\n"
        f"site = ChildSite({SLEEPS!r}); site.start('fresno'); print(site.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    words = Path(f"/proc/{child}/cmdline")
    wait_until(lambda: words.read_bytes().split(b"\0")[2:3] == [SLEEPS[2].encode()], what="its program")
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not is_alive(child), 10, "the child's end")
