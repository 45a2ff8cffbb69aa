"""A small demo experiment under `curtail ui`, and Debian's Chromium on it. `make test-ui` runs these tests."""

import os
import shutil
import signal
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browser_demo import Demo
from micro import EXPERIMENT, START, curtail, start_curtail, write_experiment
from waiting import wait_until

from curtail_pipeline.flower.processes import free_port

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PREPARED = timedelta(minutes=60)
"""Of the micro trace that runs headless first: two local segments, one that a join ends, and a federated one."""
SPEED = 20.0
"""Slow enough that a live segment goes on while a test looks."""
PATIENCE_S = 240.0


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    folder = tmp_path_factory.mktemp("demo")
    experiment = write_experiment(
        folder / "input",
        replay={"speed": SPEED},
        rounds={"round_s": 240, "max_rounds": 4},
        sites=[{**site, "steps_per_s": 0.02} for site in EXPERIMENT["sites"]],
        job={"steps": 200_000},  # more than it gets to; every order says which text is left for them
        clock={"end": (START + PREPARED).isoformat()},
    )
    done = curtail("run", "--experiment", str(experiment), home=folder, timeout=900)
    assert done.returncode == 0, done.stderr
    port, log = free_port(), folder / "ui.log"
    process = start_curtail("ui", "--experiment", str(experiment), "--port", str(port), home=folder, log=log)
    try:

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            return "the UI is at" in log.read_text()

        wait_until(answers, PATIENCE_S, "the UI")
        yield Demo(folder / "micro", f"http://127.0.0.1:{port}", log)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(120)
    said = log.read_text()
    assert "Traceback" not in said and said.rstrip().endswith("stopped; what is committed stays"), said


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    if CHROMIUM is None:
        pytest.fail("no chromium on the path; install Debian's package `chromium` (.ci/run does)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium refuses to run as root, as in a container, without this.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] * (os.geteuid() == 0))
        yield found
        found.close()


@pytest.fixture
def page(browser: "Browser") -> "Iterator[Page]":
    found = browser.new_page(viewport={"width": 1500, "height": 950})
    found.set_default_timeout(PATIENCE_S * 1000 / 4)
    yield found
    found.close()


@pytest.fixture(scope="session")
def images() -> Path | None:
    """Where `make screenshots` wants the pictures; None in a test run."""
    folder = os.environ.get("CURTAIL_SCREENSHOTS")
    return Path(folder).resolve() if folder else None
