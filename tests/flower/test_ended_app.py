"""Apps that ended without a word, on Flower's own state; that they are killed for real is in `test_local`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.flower import ended_app
from curtail_pipeline.flower.control_api import quiet

with quiet():
    from flwr.common.constant import Status, SubStatus
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.constant import TaskType
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

RUNNING = [ended_app.SERVER_APP, "--runtime-api-address", "127.0.0.1:9", "--token", "x", "--insecure"]


@pytest.mark.parametrize(
    ("argv", "code", "spoken_for"),
    [(RUNNING, -9, True), (RUNNING, 1, True), (RUNNING, 0, False), (["flower-superexec", "--insecure"], -9, False)],
)
def test_who_ended_well_or_is_no_app_is_not_spoken_for(argv: list[str], code: int, spoken_for: bool) -> None:
    assert ended_app.speaks_for(argv, code) is spoken_for


def test_nobody_to_tell_is_no_fault() -> None:
    ended_app.speak(RUNNING, -9)


@pytest.fixture
def state(tmp_path: Path) -> Callable[[], Any]:
    """Opens a SuperLink's, as another process would."""
    database = str(tmp_path / "superlink.db")

    def opened() -> Any:
        store = ObjectStoreFactory(database)
        return LinkStateFactory(database, NoOpFederationManager(), store).state()

    return opened


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")
def test_a_superlink_that_starts_again_knows_that_its_apps_have_ended(state: Callable[[], Any], tmp_path: Path) -> None:
    database = tmp_path / "superlink.db"
    ended_app.speak_for_all(database)  # of a folder that is new
    assert not database.exists()
    before, tasks = state(), []
    for _ in range(3):
        run = before.create_run("a/b", "1.0", "0" * 64, {}, "@none/default", None, "owner", TaskType.SERVER_APP)
        tasks += [task.task_id for task in before.get_tasks(run_ids=[run])]
    running, starting, waiting = tasks
    assert before.claim_task(running) and before.activate_task(running) and before.claim_task(starting)
    ended_app.speak_for_all(database)
    found = {task.task_id: task.status for task in state().get_tasks(task_ids=tasks)}
    assert (found[running].status, found[running].sub_status) == (Status.FINISHED, SubStatus.FAILED)
    assert found[starting].status == found[waiting].status == Status.PENDING, "another is started"
