"""An order to a process that waits for a run: whoever cannot take it says so, and another one is started."""

from pathlib import Path

import pytest
from waiting import wait_until

from curtail_pipeline.orchestration import warm_launcher


def test_a_worker_that_ends_while_it_is_given_a_run_did_not_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lives when it is looked at, and nobody reads what it is sent: as if it ended between the two."""
    (tmp_path / "deaf.py").write_text(
        f"import os, pathlib, time; os.close(0); pathlib.Path({str(tmp_path / 'closed')!r}).touch(); time.sleep(600)"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(warm_launcher, "WORKER", "deaf")
    workers = warm_launcher._Workers()
    try:
        wait_until((tmp_path / "closed").exists, 60, "a worker that reads nothing")
        assert workers.process.poll() is None and workers.take("a run") is False
    finally:
        workers.process.kill()
    workers.process.wait()
    assert workers.take("a run") is False
    workers.close()
