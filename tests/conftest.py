import gc
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings

from curtail_pipeline.benchmarks.s3_server import S3Server, start
from curtail_pipeline.garbage import YOUNG

ROOT = Path(__file__).resolve().parent.parent

# Workers are more than cores: threads of theirs would wait for each other, a tenth of what tests compute.
os.environ["OMP_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = "1"
# Tests start hundreds of processes, each of which would compile the product again: a third of what a command takes.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
# The tests import a million objects that stay; looking through them is a fifth of what tests compute.
gc.set_threshold(YOUNG, *gc.get_threshold()[1:])

# The same examples in every run, so that a change is judged by the change; CURTAIL_HYPOTHESIS=explore tries new ones.
settings.register_profile("fixed", derandomize=True, deadline=None)  # a busy machine is no failure
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("CURTAIL_HYPOTHESIS", "fixed"))


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real traces; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("CURTAIL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real traces at {folder}; set CURTAIL_TEST_DATA to the folder that holds them")
    return folder


@pytest.fixture(scope="module")
def few_walks() -> Iterator[None]:
    """Plans are searched with a thirtieth of the walks: for what holds of any plan, however good."""
    from curtail_pipeline.scheduling import plan_search, policy_forecast

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_forecast, "PERFECT_WALKS", 150)
        patch.setattr(plan_search, "EARLIER_WALKS_FEW", plan_search.EARLIER_WALKS)
        yield


@pytest.fixture(scope="session")
def s3_servers() -> Iterator[list[S3Server]]:
    """Those of this session, the running one last."""
    with ExitStack() as stack:
        servers: list[S3Server] = []
        stack.callback(lambda: [server.stop() for server in servers])
        yield servers


@pytest.fixture(scope="module")
def s3(s3_servers: list[S3Server]) -> S3Server:
    """An S3 server, one for all tests; ask it for a bucket of your own.

    Tests of processes that end all their descendants end it too: the next file has another.
    """
    if not s3_servers or not s3_servers[-1].alive():
        s3_servers.append(start())
    return s3_servers[-1]


LONG = (
    "test_ui.py",
    "test_rehearsal.py",
    "test_end_to_end.py",
    "test_local.py",
    "test_chaos_run.py",
    "test_bucket_run.py",
    "test_twelve_sites.py",
    "test_killed_run.py",
    "test_replays.py",
    "test_serve.py",
    "test_standing_superlink.py",
    "test_run_workers.py",
    "test_wheel.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first, so that workers end together; the run that others copy is made early."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """What has been imported is looked through no more."""
    gc.collect()
    gc.freeze()
