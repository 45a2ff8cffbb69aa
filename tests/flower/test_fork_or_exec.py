"""Where a GPU is, nothing that will use it is forked from a process that has imported torch."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from curtail_pipeline.flower import processes
from curtail_pipeline.flower.supervisor import Supervisor
from curtail_pipeline.settings.federation_settings import DEFAULT_LIMITS
from curtail_pipeline.training import serve


@pytest.mark.parametrize("gpu", [True, False])
def test_a_trainer_is_a_new_process_where_a_gpu_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    driver = tmp_path / "driver"
    monkeypatch.setattr(processes, "GPU_FILES", (driver,))
    if gpu:
        driver.touch()
    assert processes.can_fork_torch() is not gpu
    monkeypatch.setattr(serve, "run", lambda options: os.write(1, f"forked {' '.join(options)}\n".encode()) and exit(0))
    monkeypatch.setattr(sys, "executable", "/bin/echo")
    supervisor = Supervisor(tmp_path, str(tmp_path / "store"), ["CA"], None, None, DEFAULT_LIMITS)
    supervisor.inherited = []
    supervisor._add("trainer-CA", partial(supervisor._start_trainer, "CA"))
    child = supervisor.children["trainer-CA"]
    assert child.pid is not None and os.waitpid(child.pid, 0)[1] == 0
    how = "-m curtail_pipeline.training.serve" if gpu else "forked"
    assert child.log.read_text().startswith(f"{how} --site CA --store {tmp_path / 'store'} --endpoint ")
