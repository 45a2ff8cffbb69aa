"""A round that was killed goes on from its last snapshot, to the bits of one that nobody disturbed."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
import torch
from commands import run_python
from training_case import SITE, changed, fill_store, make_experiment, make_order

from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.training import unfinished
from curtail_pipeline.training.leading_ranks import RankLost
from curtail_pipeline.training.retention import snapshot_key
from curtail_pipeline.training.trainer import SiteTrainer

MINUTE = 60.0
SNAPPING = make_experiment()
FOLDER = f"unfinished/{SITE}"


class Killed(BaseException):
    """What ends a process without any clean-up."""


@pytest.fixture
def store(tmp_path):
    return fill_store(tmp_path, SNAPPING)


def trainer_of(store, seconds_a_step=4 * MINUTE):
    """By its own clock a step takes four minutes: a snapshot is due after the third, the sixth, ..."""
    now = [0.0]

    def clock():
        return now[0]

    trainer = SiteTrainer(store, SITE, SNAPPING, clock=clock)
    step = trainer._step

    def slow(*arguments):
        now[0] += seconds_a_step
        return step(*arguments)

    trainer._step = slow
    return trainer


def written(trainer):
    writer = trainer._unfinished._writer
    if writer is not None:
        writer.join()


def kill_after(trainer, steps):
    def progress(told):
        written(trainer)
        if told.steps == steps:
            raise Killed

    return progress


def snapshot_files(store):
    return sorted(path.name for path in store.path(FOLDER).iterdir()) if store.path(FOLDER).exists() else []


def comparable(result):
    return result.model_dump(exclude={"seconds", "tokens_per_s"})


def killed(store, order, monkeypatch, steps=8):
    """Leave what a kill after so many steps leaves; an exception would clean up."""
    with monkeypatch.context() as patch:
        patch.setattr(unfinished.UnfinishedRounds, "end", lambda _: None)
        trainer = trainer_of(store)
        with pytest.raises(Killed):
            trainer.train(order, kill_after(trainer, steps))


def test_a_killed_round_goes_on_from_its_snapshot_to_the_same_bits(store, monkeypatch):
    order = make_order(store, max_steps=10)
    wanted = SiteTrainer(store, SITE, SNAPPING).train(order)
    killed(store, order, monkeypatch)
    names = snapshot_files(store)
    assert len(names) == 2 and names[1] == unfinished.RECORD and names[0].endswith(".safetensors")

    told = []
    later = trainer_of(store)
    again = later.train(changed(order, attempt=1), told.append)  # another attempt at the same work
    assert [each.steps for each in told] == [7, 8, 9, 10]
    assert comparable(again) == comparable(wanted)
    assert again.seconds == 10 * 4 * MINUTE
    written(later)
    assert not snapshot_files(store)


@pytest.mark.parametrize("change", ["", "told otherwise", "lost"])
def test_what_updates_have_left_out_is_part_of_the_work(store, monkeypatch, change):
    """Where a round goes on from it: as it really began, not as it was told to."""
    first = make_order(store, codec="int8", goes_on=True, fragment=Fragment(index=0, of=2), max_steps=2)
    before = SiteTrainer(store, SITE, SNAPPING).train(first)
    begins = {"residual": before.residual.end, "inner_state": before.inner_state.end}
    order = changed(first, round=1, max_steps=10, out="scratch/second.safetensors", **begins)
    killed(store, order, monkeypatch)
    if change == "told otherwise":
        order = changed(order, residual="fresh")
    elif change == "lost":
        store.delete(snapshot_key(SITE, order.residual))
    told = []
    again = trainer_of(store).train(order, told.append)
    assert [each.steps for each in told] == ([*range(1, 11)] if change else [7, 8, 9, 10])
    assert comparable(again) == comparable(SiteTrainer(store, SITE, SNAPPING).train(order))


@pytest.mark.parametrize(
    "change",
    [{"seed": 6}, {"members": 2}, {"lease": [(1, 1, 200)]}, {"max_steps": 5}, {"inner_state": "sha256:" + "0" * 64}],
)
def test_other_work_does_not_go_on_from_it(store, monkeypatch, change):
    order = make_order(store, max_steps=10)
    killed(store, order, monkeypatch)
    assert snapshot_files(store)
    told, other = [], changed(order, **change)
    if "inner_state" in change:  # lost, and so begun fresh: that is the same work
        assert SiteTrainer(store, SITE, SNAPPING).train(other, told.append).steps == 10
        assert told[0].steps == 7
        return
    SiteTrainer(store, SITE, SNAPPING).train(other, told.append)
    assert told[0].steps == 1
    assert not store.path(FOLDER).exists()


def test_a_replay_leaves_it_alone(store, monkeypatch):
    order = make_order(store, max_steps=10)
    killed(store, order, monkeypatch)
    names, told = snapshot_files(store), []
    SiteTrainer(store, SITE, SNAPPING).train(changed(order, replay="r1", max_steps=2, out="scratch/r"), told.append)
    assert told[0].steps == 1 and snapshot_files(store) == names


def lose_a_rank_after(steps):
    def progress(told):
        if told.steps == steps:
            raise RankLost

    return progress


def test_a_replay_leaves_a_round_alone_that_a_lost_rank_has_ended(store):
    order, trainer = make_order(store, max_steps=10), trainer_of(store)
    wanted = SiteTrainer(store, SITE, SNAPPING).train(order)
    with pytest.raises(RankLost):
        trainer.train(order, lose_a_rank_after(5))
    written(trainer)
    names, seen = snapshot_files(store), []
    assert names

    def look(told):
        written(trainer)
        seen.append(snapshot_files(store))

    trainer.train(changed(order, replay="r1", seed=9, max_steps=8, out="scratch/r"), look)
    assert seen == [names] * 8, "none of a replay is taken for the round's"
    told = []
    assert comparable(trainer.train(changed(order, attempt=1), told.append)) == comparable(wanted)
    assert told[0].steps == 4


def test_a_snapshot_that_was_being_written_when_a_rank_was_lost_counts(store, monkeypatch):
    write = unfinished.write_tensors

    def slow(path, tensors):
        time.sleep(0.5)
        return write(path, tensors)

    order, trainer, told = make_order(store, max_steps=6), trainer_of(store), []
    monkeypatch.setattr(unfinished, "write_tensors", slow)
    with pytest.raises(RankLost):
        trainer.train(order, lose_a_rank_after(4))
    trainer.train(order, told.append)
    assert told[0].steps == 4


def test_a_snapshot_that_the_disk_does_not_give_back_is_not_gone_on_from(store, monkeypatch):
    order, told = make_order(store, max_steps=8), []
    wanted = SiteTrainer(store, SITE, SNAPPING).train(order)
    killed(store, order, monkeypatch)

    def unreadable(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(unfinished, "read_tensors", unreadable)
    assert comparable(SiteTrainer(store, SITE, SNAPPING).train(order, told.append)) == comparable(wanted)
    assert told[0].steps == 1


@pytest.mark.parametrize("spoil", ["tensors", "record", "gone"])
def test_a_damaged_snapshot_is_not_gone_on_from(store, monkeypatch, spoil):
    order = make_order(store, max_steps=8)
    wanted = SiteTrainer(store, SITE, SNAPPING).train(order)
    killed(store, order, monkeypatch)
    (tensors,) = store.path(FOLDER).glob("*.safetensors")
    record = store.path(FOLDER) / unfinished.RECORD
    if spoil == "gone":
        tensors.unlink()
    else:
        path = tensors if spoil == "tensors" else record
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 255
        path.write_bytes(data)
    told = []
    again = SiteTrainer(store, SITE, SNAPPING).train(changed(order, attempt=1), told.append)
    assert told[0].steps == 1 and comparable(again) == comparable(wanted)


def test_training_goes_on_while_a_snapshot_is_written(store, monkeypatch):
    """Counts alone: the writer is held back for four more steps, and no other one is begun meanwhile."""
    go, begun = threading.Event(), []
    write = unfinished.write_tensors

    def held(path, tensors):
        if "weights/lm_head.weight" in tensors:
            begun.append(path)
            assert go.wait(60)
        return write(path, tensors)

    monkeypatch.setattr(unfinished, "write_tensors", held)
    trainer, steps = trainer_of(store), []

    def progress(told):
        steps.append(told.steps)
        if told.steps == 8:
            go.set()
            written(trainer)

    wanted = SiteTrainer(store, SITE, SNAPPING).train(make_order(store, max_steps=10))
    result = trainer.train(make_order(store, max_steps=10, attempt=1), progress)
    assert steps == list(range(1, 11)) and comparable(result) == comparable(wanted)
    written(trainer)
    assert len(begun) == 2  # due after 3 steps and 6, but the first was being written until after the 8th
    assert not store.path(FOLDER).exists() or not snapshot_files(store)


@pytest.mark.slow
def test_a_trainer_that_is_killed_for_good_leaves_its_snapshot(tmp_path):
    content = make_experiment().model_dump(mode="json")
    content["federation"]["snapshot_minutes"] = 1e-6
    experiment = parse_experiment(content, "small")
    store = fill_store(tmp_path, experiment)
    order = make_order(store, max_steps=30)
    wanted = SiteTrainer(store, SITE, make_experiment()).train(order)
    code = (
        "import os, signal, sys; sys.path[:0] = sys.argv[2:]\n"
        "from training_case import *\n"
        "from curtail_pipeline.training.trainer import SiteTrainer\n"
        "store = FolderStore(sys.argv[1])\n"
        "experiment = parse_experiment(store.read_json('experiment.json'), 'stored')\n"
        "order = make_order(store, max_steps=30)\n"
        "def progress(told):\n"
        "    there = store.path('unfinished/NEM_SA/unfinished.json').exists()\n"
        "    if told.steps > 5 and there: os.kill(os.getpid(), signal.SIGKILL)\n"
        "SiteTrainer(store, SITE, experiment).train(order, progress)\n"
    )
    tests, program = str(Path(__file__).resolve().parent.parent), tmp_path / "program.py"
    program.write_text(code)
    done = run_python(str(program), str(store.root), tests, env=os.environ, timeout=300, torch=True)
    assert done.returncode == -9
    told = []
    again = SiteTrainer(FolderStore(store.root), SITE, experiment).train(order, told.append)
    assert told[0].steps > 1 and comparable(again) == comparable(wanted)


def test_without_pinned_memory_the_rest_of_a_snapshot_takes_other_memory_and_it_is_said_once(
    tmp_path, monkeypatch, caplog
):
    """A host that pins no more after the first tensor; on a machine without GPU as on one with."""
    rounds, real, pinned = unfinished.UnfinishedRounds(tmp_path, MINUTE), torch.empty_like, []

    def scarce(tensor, *, pin_memory=False, **where):
        if pin_memory:
            pinned.append(tensor)
            if len(pinned) > 1:
                raise torch.OutOfMemoryError("CUDA error: out of memory\nCUDA kernel errors might be ...")
        return real(tensor, **where)

    monkeypatch.setattr(torch, "empty_like", scarce)
    rooms = [rounds._room(torch.ones(size), pinned=True) for size in (1, 2, 3, 4)]
    assert [len(room) for room in rooms] == [1, 2, 3, 4] and len(pinned) == 2, "no more is asked for"
    (record,) = caplog.records
    assert record.message.endswith("training waits for each copy: CUDA error: out of memory")
