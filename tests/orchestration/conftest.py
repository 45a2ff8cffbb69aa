import os
import shutil

import pytest
from filelock import FileLock
from whole_runs import Finished, finish


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A run that nothing disturbed, one for all workers: who needs it first makes it. To be read and copied only."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with FileLock(f"{home}.lock"):
        if not (home / "summary.json").exists():
            shutil.rmtree(home, ignore_errors=True)
            return finish(home)
    return Finished(home, home / "input" / "micro.yaml")


@pytest.fixture(scope="module")
def copied(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A copy of it for the tests of a file."""
    return finished.copy(tmp_path_factory.mktemp("copied"))
