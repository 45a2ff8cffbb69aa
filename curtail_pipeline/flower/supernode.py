"""A SuperNode's process: Flower's own, but that it looks for messages more often, never waits for a reply in vain, and
sends the right one.

Like `control_api` it touches Flower's internals; its tests run on Flower's own classes, so that an upgrade fails there.
"""

import time
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from curtail_pipeline.flower.control_api import entry_point

NODE_BUSY_POLL_S = 0.3
NODE_IDLE_POLL_S = 1.0
NODE_REPLY_POLL_S = 0.2
NODE_BUSY_S = 30.0
"""How often a SuperNode asks for messages, within 30 s of the last one and later, and whether its reply is there.
Flower's own 3 s would be most of a short round."""

READY_POLL_S = 0.1


def supernode(ready: str | None = None) -> None:
    """`flower-supernode` that looks for messages more often.

    Args:
        ready: file that its site's trainer makes when it takes orders: the node is not online before.
    """
    _poll_faster()
    _answer_for_ended_tasks()
    _push_until_answered()
    node = entry_point("flower-supernode")
    while ready is not None and not Path(ready).exists():
        time.sleep(READY_POLL_S)
    node()


def _answer_for_ended_tasks() -> None:
    """Have the SuperNode of this process answer for a ClientApp that ended without a whole reply.

    It waits for the reply to a message before it asks for another one. Flower answers for a ClientApp that is silent,
    not for one that says that it was stopped (its SuperExec died), nor where the message had not been fetched yet, nor
    where it ended between a reply and the objects that go with it: that node would never take another order.
    """
    from flwr.common.constant import Status
    from flwr.supercore.constant import TaskType
    from flwr.supernode.nodestate import in_memory_nodestate

    state: Any = in_memory_nodestate.InMemoryNodeState
    finish, answer = state.finish_task, state._store_error_replies

    def answer_all(self: Any, run_ids: set[int], error: Any) -> None:
        with self.lock_msg_store:
            for name, entry in [*self.msg_store.items()]:
                metadata = entry.message.metadata
                if metadata.run_id not in run_ids:
                    continue
                if not metadata.reply_to_message_id:
                    entry.is_retrieved = True  # there is no task any more that would fetch it
                elif _lacks_objects(self.object_store, name):
                    if not entry.is_retrieved:
                        del self.msg_store[name]  # Flower's answer takes its place
                    self.object_store.delete(name)  # ends the wait for them where it is being sent
        answer(self, run_ids, error)

    def finish_and_answer(self: Any, task_id: int, sub_status: str, details: str) -> bool:
        finished = bool(finish(self, task_id, sub_status, details))
        if finished:
            tasks = self.get_tasks(task_ids=[task_id])
            ended = {task.run_id for task in tasks if task.type == TaskType.CLIENT_APP}
            # One message at a time: where another app of the run is at work, this one's has been answered for.
            others = self.get_tasks(run_ids=[*ended]) if ended else ()
            ended -= {task.run_id for task in others if task.status.status != Status.FINISHED}
            answer_all(self, ended, in_memory_nodestate.CLIENT_APP_CRASHED_ERROR)
        return finished

    state.finish_task, state._store_error_replies = finish_and_answer, answer_all


def _lacks_objects(store: Any, message_id: str) -> bool:
    """Whether a part of a message was announced to a node's store of objects and has not come."""
    from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

    if store.get(message_id) is None:
        return False
    return any(store.get(part.object_id) == b"" for part in iterate_object_tree(store.get_object_tree(message_id)))


def _push_until_answered() -> None:
    """Have the SuperNode of this process push replies until that to the message which it has just taken is gone.

    Flower pushes for each message what replies there are. Where the SuperLink was started again while a message was
    fetched, the run is over and the message is passed over, but its ClientApp answers it all the same: that reply goes
    in place of the next message's, whose own goes with the one after it, and so on, always when its run has given the
    node up.
    """
    internal: Any = import_module("flwr.supernode.start_client_internal")
    pull, push = internal._pull_and_store_message, internal._push_messages
    taken: list[str] = []

    def pull_and_note(*, state: Any, **others: Any) -> int | None:
        with state.lock_msg_store:
            before = {*state.msg_store}
        run_id: int | None = pull(state=state, **others)
        with state.lock_msg_store:
            new = {name: entry.message.metadata for name, entry in state.msg_store.items() if name not in before}
        taken[:] = [name for name, metadata in new.items() if not metadata.reply_to_message_id]
        return run_id

    def push_until(*, state: Any, **others: Any) -> None:
        push(state=state, **others)
        while any(name in state.msg_store for name in taken):  # it goes with its reply
            push(state=state, **others)

    internal._pull_and_store_message, internal._push_messages = pull_and_note, push_until


def _poll_faster() -> None:
    """Give the SuperNode of this process a clock whose `sleep` is shorter.

    It sleeps for 3 s after it found no message, and for 0.5 s while it waits for the reply to one.
    """
    start_client_internal = import_module("flwr.supernode.start_client_internal")
    original = start_client_internal.time
    last_reply = -NODE_BUSY_S

    class Clock(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(original, name)

        @staticmethod
        def sleep(seconds: float) -> None:
            nonlocal last_reply
            now = original.monotonic()
            if seconds < 1:
                last_reply = now
                original.sleep(min(seconds, NODE_REPLY_POLL_S))
            else:
                busy = now - last_reply < NODE_BUSY_S
                original.sleep(min(seconds, NODE_BUSY_POLL_S if busy else NODE_IDLE_POLL_S))

    start_client_internal.time = Clock("time")  # type: ignore[attr-defined]
