"""A site of two devices whose processes die: the round ends with a reason, and nothing is left."""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
from training_case import SITE, changed, fill_store, make_experiment, make_order
from waiting import children, wait_until

from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.training.leading_ranks import RankLost
from curtail_pipeline.training.trainer import SiteTrainer

pytestmark = pytest.mark.long


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Where processes put what they need for a time."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def two_devices():
    experiment = make_experiment()
    site = experiment.sites[0].model_copy(update={"devices": 2})
    return experiment.model_copy(update={"sites": [site]})


def everything(store: FolderStore):
    return {path for path in store.root.rglob("*") if path.is_file()}


def left_in(folder: Path):
    return list(folder.iterdir())


def test_a_rank_that_dies_ends_the_round_and_the_next_order_starts_it_again(tmp_path, scratch):
    experiment = two_devices()
    store = fill_store(tmp_path, experiment)
    trainer, order = SiteTrainer(store, SITE, experiment), make_order(store)
    before = everything(store)

    def kill_one(told):
        if told.steps == 2:
            (child,) = children("rank_process")
            child.kill()

    with pytest.raises(RankLost, match=r"of device 2 \(cpu\) ended \(code -9\) while 2 devices") as told:
        trainer.train(order, kill_one)
    assert "\n" not in str(told.value)
    assert everything(store) == before and children("rank_process") == [] and left_in(scratch) == []

    result = trainer.train(changed(order, attempt=1))
    assert result.steps == 3 and result.consumed == ((1, 0, 12),) and result.tokens == 3 * 64
    trainer.close()
    assert children("rank_process") == [] and left_in(scratch) == []
    alone = SiteTrainer(store, SITE, make_experiment()).train(changed(order, attempt=2, out="scratch/alone"))
    assert result.loss_last == pytest.approx(alone.loss_last, rel=1e-5)
    assert trainer.train(changed(order, attempt=3)).weights.sha256 == result.weights.sha256  # in new processes
    trainer.close()


def test_nothing_is_left_of_a_trainer_that_is_killed_in_the_middle_of_a_step(tmp_path, scratch):
    experiment = two_devices()
    store = fill_store(tmp_path, experiment)
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "from training_case import *\n"
        "from curtail_pipeline.training.trainer import SiteTrainer\n"
        "store, experiment = FolderStore(sys.argv[1]), parse_experiment(FolderStore(sys.argv[1]).read_json("
        "'experiment.json'), 'stored')\n"
        "order = make_order(store, max_steps=100000, total_steps=100000, lease=[(e, 0, 100) for e in range(1, 2001)])\n"
        "SiteTrainer(store, SITE, experiment).train(order, lambda told: print(told.steps, flush=True))\n"
    )
    tests = str(Path(__file__).resolve().parent.parent)
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), SITE, tests], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout.readline().strip() == "1"
    ranks = psutil.Process(parent.pid).children()
    assert len(ranks) == 1 and len(left_in(scratch)) == 1
    ranks[0].suspend()  # it would not see that its input ends
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    wait_until(lambda: not ranks[0].is_running() or ranks[0].status() == psutil.STATUS_ZOMBIE)
    assert left_in(scratch) == []
