"""What is changed in a SuperNode's process."""

import threading
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from curtail_pipeline.flower import supernode
from curtail_pipeline.flower.control_api import quiet

with quiet():
    import flwr.supernode.start_client_internal
    from flwr.app import ConfigRecord, Message, RecordDict
    from flwr.common.constant import SubStatus
    from flwr.supercore.constant import TaskType
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
    from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore
    from flwr.supercore.run import Run, RunNotRunningException
    from flwr.supercore.task_identity import TaskIdentity
    from flwr.supernode.nodestate import in_memory_nodestate

RUN, NODE = 7, 11


def test_the_supernode_polls_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = flwr.supernode.start_client_internal
    slept: list[float] = []
    monkeypatch.setattr(module, "time", module.time)  # put back afterwards
    monkeypatch.setattr(module.time, "sleep", slept.append)
    now = 1000.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    supernode._poll_faster()
    for seconds in (3, 0.5, 0.1, 3):
        module.time.sleep(seconds)
    assert slept == [supernode.NODE_IDLE_POLL_S, supernode.NODE_REPLY_POLL_S, 0.1, supernode.NODE_BUSY_POLL_S]
    now += supernode.NODE_BUSY_S + 1
    module.time.sleep(3)
    assert slept[-1] == supernode.NODE_IDLE_POLL_S, "long after the last message it asks seldom again"
    assert module.time.monotonic() == now, "everything else is the real module's"


def test_a_node_is_not_online_before_its_trainer_takes_orders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ready, online = tmp_path / "trainer.json", threading.Event()
    monkeypatch.setattr(supernode, "_poll_faster", lambda: None)  # this process' clock
    monkeypatch.setattr(supernode, "_answer_for_ended_tasks", lambda: None)  # its classes
    monkeypatch.setattr(supernode, "_push_until_answered", lambda: None)  # its functions
    monkeypatch.setattr(supernode, "entry_point", lambda name: online.set)
    node = threading.Thread(target=supernode.supernode, args=(str(ready),))
    node.start()
    assert not online.wait(5 * supernode.READY_POLL_S)
    ready.touch()
    node.join(60)
    assert online.is_set()


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A node's, with a message for its ClientApp."""
    kind: Any = in_memory_nodestate.InMemoryNodeState
    for name in ("finish_task", "_store_error_replies"):
        monkeypatch.setattr(kind, name, getattr(kind, name))  # put back afterwards
    supernode._answer_for_ended_tasks()
    made = kind(InMemoryObjectStore())
    made.set_node_id(NODE)
    monkeypatch.setattr(TaskIdentity, "_run_id", RUN)
    monkeypatch.setattr(TaskIdentity, "_node_id", NODE)
    monkeypatch.setattr(TaskIdentity, "_task_id", 1)
    order = Message(RecordDict(), dst_node_id=NODE, message_type="train")
    order.metadata.__dict__["_message_id"] = order.object_id
    made.store_message(order)
    return made


def begun(state: Any) -> int:
    """A ClientApp that runs."""
    task = int(state.create_task(task_type=TaskType.CLIENT_APP, run_id=RUN, fab_hash="0" * 64))
    assert state.claim_task(task) and state.activate_task(task)
    return task


@pytest.mark.parametrize("fetched", [True, False])
@pytest.mark.parametrize("how", [SubStatus.FAILED, SubStatus.STOPPED, SubStatus.COMPLETED])
def test_a_clientapp_that_ended_without_a_reply_is_answered_for(state: Any, fetched: bool, how: str) -> None:
    """Else the node waits for ever, and takes no other order."""
    task = begun(state)
    if fetched:
        assert len(state.get_messages_legacy(is_reply=False)) == 1
    assert state.get_messages_legacy(is_reply=True) == []
    assert state.finish_task(task, how, "it was told to stop")
    (reply,) = state.get_messages_legacy(is_reply=True)
    assert reply.has_error() and reply.error.reason == in_memory_nodestate.CLIENT_APP_CRASHED_ERROR.reason
    assert state.get_messages_legacy() == [], "nothing is left that another ClientApp would take"


def reply_at_once(state: Any) -> None:
    """What its ClientApp answers, with no objects beside it."""
    (order,) = state.get_messages_legacy(is_reply=False)
    reply = Message(RecordDict(), reply_to=order)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    state.store_message(reply)


def test_a_reply_is_not_answered_for_again(state: Any) -> None:
    task = begun(state)
    reply_at_once(state)
    assert state.finish_task(task, SubStatus.COMPLETED, "")
    assert [found.has_error() for found in state.get_messages_legacy(is_reply=True)] == [False]


def test_who_is_spoken_for_late_does_not_end_the_next_order(state: Any) -> None:
    """It was killed when its reply was whole, and the run's next order is under way when that is said."""
    first = begun(state)
    reply_at_once(state)
    assert [found.has_error() for found in state.get_messages_legacy(is_reply=True)] == [False]
    following = Message(RecordDict({"order": ConfigRecord({"n": 2})}), dst_node_id=NODE, message_type="train")
    following.metadata.__dict__["_message_id"] = following.object_id
    state.store_message(following)
    second = begun(state)
    assert state.finish_task(first, SubStatus.FAILED, "it was ended by signal 9")
    assert state.get_messages_legacy(is_reply=True) == [] and len(state.get_messages_legacy(is_reply=False)) == 1
    assert state.finish_task(second, SubStatus.FAILED, "it was ended by signal 9")
    assert [found.has_error() for found in state.get_messages_legacy(is_reply=True)] == [True]


def replied(state: Any, missing: int) -> Message:
    """What its ClientApp answers, but for the last of the objects that go with it."""
    (order,) = state.get_messages_legacy(is_reply=False)
    reply = Message(RecordDict({"result": ConfigRecord({"loss": 4.0})}), reply_to=order)
    reply.metadata.__dict__["_message_id"] = reply.object_id
    state.object_store.preregister(RUN, get_object_tree(reply))
    objects = get_all_nested_objects(reply)
    for name in list(objects)[: len(objects) - missing]:
        state.object_store.put(name, objects[name].deflate())
    state.record_message_processing_end(order.metadata.message_id)
    state.store_message(reply)
    return reply


@pytest.mark.parametrize("missing", [0, 1])
def test_a_clientapp_that_ended_before_its_reply_was_whole_is_answered_for(state: Any, missing: int) -> None:
    task = begun(state)
    reply = replied(state, missing)
    assert state.finish_task(task, SubStatus.FAILED, "it was killed")
    (found,) = state.get_messages_legacy(is_reply=True)
    assert found.has_error() == bool(missing)
    assert (reply.object_id in state.object_store) == (not missing)


def test_a_node_that_sends_such_a_reply_waits_no_longer(state: Any) -> None:
    task = begun(state)
    reply, sending, pushed = replied(state, 1), threading.Event(), list[bytes | None]()
    names = set(get_all_nested_objects(reply))

    def send(*_: object) -> tuple[set[str], str]:
        sending.set()
        return names, "session"

    def push(run: int, session: str, name: str, content: bytes) -> None:
        pushed.append(content)
        assert content, "as the SuperLink refuses an object without content"

    push_messages: Any = flwr.supernode.start_client_internal._push_messages
    node = threading.Thread(target=push_messages, args=(state, state.object_store, send, push), daemon=True)
    node.start()
    assert sending.wait(60)
    node.join(1)
    assert node.is_alive(), "it waits for an object"
    assert state.finish_task(task, SubStatus.FAILED, "it was killed")
    node.join(60)
    assert not node.is_alive() and pushed[-1] is None
    assert state.get_messages_legacy() == [] and len(state.object_store) == 0


def test_a_message_is_not_left_without_its_reply_for_that_of_one_before(
    state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SuperLink is killed while it hands out a message: its run is over then, and the reply is still to come."""
    internal: Any = flwr.supernode.start_client_internal
    for name in ("_pull_and_store_message", "_push_messages"):
        monkeypatch.setattr(internal, name, getattr(internal, name))  # put back afterwards
    supernode._push_until_answered()
    state.delete_messages()
    state.store_run(Run.create_empty(RUN))
    sent: list[str] = []

    def pulled(number: int, confirm: Any) -> tuple[Message, int | None]:
        order = Message(RecordDict({"order": ConfigRecord({"n": number})}), dst_node_id=NODE, message_type="train")
        order.metadata.__dict__["_message_id"] = order.object_id
        objects = get_all_nested_objects(order)
        run = internal._pull_and_store_message(
            state=state, object_store=state.object_store, node_config={},
            receive=lambda: (order, get_object_tree(order)), get_run=None, get_fab=None,
            pull_object=lambda run, name: objects[name].deflate(),
            confirm_message_received=confirm, trusted_entities=None,
        )  # fmt: skip
        return order, run

    def send(reply: Message, *_: object) -> tuple[set[str], str]:
        sent.append(reply.metadata.reply_to_message_id)
        if len(sent) == 1:
            raise RunNotRunningException
        return set(), "session"

    def is_over(*_: object) -> None:
        raise RunNotRunningException

    first, run = pulled(1, is_over)
    assert run is None, "passed over"
    replied(state, 0)
    second, run = pulled(2, lambda *_: None)
    assert run is not None
    node = threading.Thread(
        target=internal._push_messages,
        kwargs={"state": state, "object_store": state.object_store, "send": send, "push_object": lambda *_: None},
        daemon=True,
    )
    node.start()
    wait_until(lambda: sent, 60)
    replied(state, 0)
    node.join(60)
    assert not node.is_alive() and sent == [first.metadata.message_id, second.metadata.message_id]
    assert state.get_messages_legacy() == []
