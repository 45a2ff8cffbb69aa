"""The server's side in Flower: find the members' nodes, run the segment over the grid.

Weights never travel in messages: an order and a result are small JSON texts that refer to files in the store.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from curtail_pipeline.errors import FULL_DISK, CurtailError, FederationError, MessageError, SitesDown, is_out_of_space
from curtail_pipeline.federation.admission import HeldoutLoss
from curtail_pipeline.federation.answers import POLL_S
from curtail_pipeline.federation.orders import Order, Plan
from curtail_pipeline.federation.plan import folder_of
from curtail_pipeline.federation.rounds import run_plan
from curtail_pipeline.federation.server_life import LifeWriter, ServerFailure, failure_key
from curtail_pipeline.federation.trainer_api import Answer
from curtail_pipeline.federation.transport import Failure, Malformed, Reply, site_said
from curtail_pipeline.flower.processes import SUPERVISOR_VARIABLE, exit_with
from curtail_pipeline.flower.run_config import RunConfig
from curtail_pipeline.storage.store import Store, StoreUnavailable
from curtail_pipeline.storage.stores import open_store

TTL_S = 7 * 24 * 3600.0
"""How long a message may wait: above the longest window."""
QUERY_TIMEOUT_S = 20.0
"""How long a node may take to say who it is; one that is well takes 1 to 3 s. Flower takes one that was cut off for
online for another minute, and after a jump of its clock for as long as that was."""
NODES_S = 15.0
"""How long a member's node may take to come online: SuperNodes look for a SuperLink that was away with a backoff."""
ASK_AGAIN_S = 1.0
"""After an answer that a replay's order is not done yet."""


class FlowerTransport:
    """Orders as TRAIN messages to nodes; replies as they come.

    A live order is one message. That of a replay is sent again until it is done, since a node takes one message at a
    time and its agent must not wait for a trainer that live orders keep busy. A site without a node is lost.
    """

    def __init__(self, grid: Grid, nodes: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._grid, self._nodes, self._clock = grid, dict(nodes), clock
        self._waiting: dict[str, tuple[str, Order]] = {}
        self._later: list[tuple[float, str, Order]] = []
        self._untaken: list[tuple[str, Reply]] = []

    def send(self, site: str, order: Order) -> None:
        if site not in self._nodes:
            self._untaken.append((site, Failure("its SuperNode is not online")))
            return
        content = RecordDict({"order": ConfigRecord({"order": order.model_dump_json()})})
        message = Message(
            content, self._nodes[site], MessageType.TRAIN, ttl=TTL_S, group_id=f"{order.key}/{order.round}"
        )
        (message_id,) = self._grid.push_messages([message])
        if not message_id:
            self._untaken.append((site, Failure(f"the SuperLink takes no order for {site}; was it revoked?")))
            return
        self._waiting[message_id] = (site, order)

    def poll(self) -> list[tuple[str, Reply]]:
        now = self._clock()
        due, self._later = [x for x in self._later if x[0] <= now], [x for x in self._later if x[0] > now]
        for _, site, order in due:
            self.send(site, order)
        answers, self._untaken = self._untaken, []
        if not self._waiting:
            return answers
        for reply in self._grid.pull_messages(list(self._waiting)):
            sent = self._waiting.pop(reply.metadata.reply_to_message_id, None)
            if sent is None:
                continue
            site, order = sent
            found = _read(reply)
            if found is None:
                self._later.append((now + ASK_AGAIN_S, site, order))
            elif isinstance(found, Failure | Malformed):
                answers.append((site, replace(found, round=order.round)))
            else:
                answers.append((site, found))
        return answers


def _answer(reply: Message) -> Answer:
    record = reply.content.config_records.get("answer")
    if record is None or "answer" not in record:
        raise MessageError("the agent's answer is empty; use the same version of curtail_pipeline on both sides")
    return Answer.read(str(record["answer"]), "the agent's answer")


def _read(reply: Message) -> Reply | None:
    """What came of an order; None while it waits or is worked on."""
    if reply.has_error():
        reason = site_said(reply.error.reason or "no reason given")
        return Failure(f"Flower error {reply.error.code}: {reason}")
    try:
        answer = _answer(reply)
    except MessageError as error:
        return Malformed(site_said(str(error)))
    if answer.waiting:
        return None
    if answer.result is None:
        return Failure(site_said(answer.error or "its agent answered without a result"))
    return answer.result


def _name_in(reply: Message) -> str:
    """Who a node says it is; nothing for one of something else."""
    try:
        return "" if reply.has_error() else _answer(reply).name
    except MessageError:
        return ""


def resolve_nodes(
    grid: Grid,
    members: Iterable[str],
    hints: Mapping[str, int],
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> dict[str, int]:
    """The node of every member that is online: by registered name, by hint, else by asking all unknown nodes.

    A node that is registered is asked nothing: its key says which site it is, and it can be no other one.

    Raises:
        SitesDown: no member has.
    """
    members, deadline = list(members), clock() + NODES_S
    answered_by = deadline
    names: dict[int, str] = {}
    asked: set[int] = set()
    pending: set[str] = set()
    while True:
        online = {node.node_id: node.name for node in grid.get_nodes()}
        found = {name: node for node, name in online.items() if name in members}
        found |= {name: node for node, name in names.items() if node in online and name not in found}
        found |= {site: hints[site] for site in members if site not in found and hints.get(site) in online}
        now = clock()
        if len(found) == len(members) or now > (answered_by if pending else deadline):
            break
        # those that come later are not asked: one that crashes as it starts is another node each time
        nameless = {node for node, name in online.items() if not name and now <= deadline}
        unknown = sorted(nameless - set(found.values()) - asked)
        asked |= {*unknown}
        queries = [Message(RecordDict(), node, MessageType.QUERY, ttl=QUERY_TIMEOUT_S) for node in unknown]
        if queries:
            pending |= {i for i in grid.push_messages(queries) if i}
            answered_by = max(deadline, now + QUERY_TIMEOUT_S)
        for reply in grid.pull_messages([*pending]) if pending else ():
            pending.discard(reply.metadata.reply_to_message_id)
            name = _name_in(reply)
            if name in members:
                names.setdefault(reply.metadata.src_node_id, name)
        wait(POLL_S)
    if not found:
        raise SitesDown(
            f"no SuperNode of {', '.join(members)} is online ({len(online)} nodes are); start one, or wait for one",
            dict.fromkeys(members, "its SuperNode is not online"),
        )
    return {site: found[site] for site in members if site in found}


def serve(grid: Grid, context: Context) -> None:
    """The ServerApp: run the plan named in the run config."""
    supervisor = os.environ.get(SUPERVISOR_VARIABLE)
    if supervisor:
        exit_with(int(supervisor))
    config = RunConfig.from_flower(context.run_config)
    store = open_store(config.store)
    plan = store.read_record(config.plan, Plan)
    life = LifeWriter(store, folder_of(config.plan), time.monotonic)

    def wait(seconds: float) -> None:
        life.beat("collecting")
        time.sleep(seconds)

    try:
        gate = _gate(store, plan)
        life.beat("collecting")  # from here on whoever follows the run need not wait for Flower to miss it
        nodes = resolve_nodes(grid, plan.members, config.nodes, wait=wait)
        life.beat("resuming")
        run_plan(
            FlowerTransport(grid, nodes),
            config.plan,
            store,
            limits=config.limits,
            log=lambda line: print(line, flush=True),
            heldout_loss=gate,
        )
    except StoreUnavailable:
        raise  # without a word: another run goes on when the store is back
    except CurtailError as error:
        sites = error.sites if isinstance(error, SitesDown) else {}
        store.write_record(failure_key(folder_of(config.plan)), ServerFailure(error=str(error), sites=sites))
        raise
    except OSError as error:
        if not is_out_of_space(error):
            raise
        raise FederationError(f"{plan.key}: {FULL_DISK}") from None


def _gate(store: Store, plan: Plan) -> HeldoutLoss | None:
    """What judges updates, where the plan wants it; imports torch."""
    if plan.heldout_gate is None:
        return None
    from curtail_pipeline.training.heldout_gate import HeldoutGate

    return HeldoutGate(store, plan)
