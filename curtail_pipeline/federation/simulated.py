"""A federation inside one process, with faults on demand. For tests; nothing here trains a model.

`MemoryTransport` runs site functions when it is polled; `SimulatedSite` is such a function, whose "training" is a
deterministic nudge of the weights that depends on the parent, the tokens and the inner state, so that a lost state, a
token counted twice or a wrong parent changes the result.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from safetensors.numpy import load_file, save

from curtail_pipeline.federation.answered import Delivered
from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.orders import Activity, Heartbeat, Order, Result, WrittenWeights, agent_key
from curtail_pipeline.federation.state_file import write_state
from curtail_pipeline.federation.tensor_stream import Floats, TensorFile, TensorWriter, from_float32, pieces
from curtail_pipeline.federation.transport import Failure, Reply
from curtail_pipeline.federation.update_file import write_start, write_update
from curtail_pipeline.settings.federation_settings import LossyName
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.manifest import FRESH, InnerStates
from curtail_pipeline.storage.store import Store, file_sha256
from curtail_pipeline.times import EPOCH, seconds
from curtail_pipeline.tokens.ranges import compact, take_prefix, total

FaultKind = Literal[
    "kill", "restart", "error", "nan", "huge", "corrupt", "shape", "stale", "greedy", "halved", "boastful", "dreamer",
    "other round", "other torch", "lost state", "lost rest", "gone", "nan state", "huge state", "no state",
    "mute", "hang", "undelivered", "late", "not stored", "disk full",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What goes wrong at a site in a round.

    kill: heartbeat and reply stop. restart: the agent comes back as another process, the reply is gone. mute: the
    site trains on and never replies. hang: its training thread stands still, its heartbeat goes on. undelivered: it
    lives and the order never reaches it. late: it answers after 40 polls, or when its round was merged without it.
    error: the transport reports a failure. nan, huge, shape, corrupt: the weights are not finite, moved too far,
    misshapen, or not those announced. stale: trained from another parent. gone: the weights are not in the store.
    greedy: consumes ranges it has no lease for. halved: names half of the ranges it trained on. boastful: claims a
    hundred times its tokens. dreamer: claims a loss that its steps cannot have had. other round: signs for the
    next. other torch: works with another release. lost state: starts fresh whatever it is told. lost rest: likewise
    without what its updates have left out. nan state, huge state, no state: the inner state that is to be merged is not
    finite, larger than gradients can leave it, or not there.
    """

    site: str
    round: int
    kind: FaultKind


class SimulatedSite:
    """Answers orders as a resident trainer does, in microseconds.

    One step consumes `sequences_per_step` sequences of `sequence_length` tokens. `steps_per_round` bounds the steps of
    a round as a deadline does.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        sequences_per_step: int = 4,
        sequence_length: int = 8,
        steps_per_round: int | None = None,
    ) -> None:
        self.name, self.store = name, store
        self.sequences_per_step, self.sequence_length = sequences_per_step, sequence_length
        self.steps_per_round = steps_per_round

    def __call__(self, order: Order, kind: FaultKind | None = None) -> Result:
        held = total(order.lease) // self.sequences_per_step
        steps = min(order.max_steps, held, order.max_steps if self.steps_per_round is None else self.steps_per_round)
        consumed = compact(take_prefix(order.lease, steps * self.sequences_per_step))
        if kind == "greedy":
            consumed = [(part[0], part[1] + 1, part[2] + 1) for part in consumed]
        if kind == "halved":
            consumed = compact(take_prefix(order.lease, steps * self.sequences_per_step // 2))
        begin = FRESH if kind == "lost state" else order.inner_state
        residual = FRESH if kind == "lost rest" else order.residual
        left = load_file(self._left(residual)) if order.goes_on and residual != FRESH else {}
        with self._begun(order, left) as parent, self.store.new_file(order.out) as out:
            begun = file_sha256(parent)
            seed = hashlib.sha256(repr((self.name, begin, begun, consumed, order.first_step)).encode())
            self._write(parent, out, int(seed.hexdigest()[:12], 16), steps, kind)
            if order.codec != "fp32" and kind not in ("nan", "shape"):
                _code(parent, out, order.codec, left, order.fragment)
            digest, size = file_sha256(out), out.stat().st_size
            if order.delivered and kind not in ("nan", "shape"):  # which cannot be gone on from
                self._kept(digest).parent.mkdir(parents=True, exist_ok=True)
                self._kept(digest).write_bytes(out.read_bytes())
            if kind == "corrupt":
                data = bytearray(out.read_bytes())
                data[-1] ^= 1
                out.write_bytes(data)
        if kind == "gone":
            self.store.delete(order.out)
        end = f"sha256:{seed.hexdigest()}" if steps else begin
        if (steps or order.goes_on) and order.inner_out:
            has = steps > 0 or begin != FRESH
            end = f"sha256:{self._write_state(order, int(seed.hexdigest()[:12], 16), kind, has)}"
        if order.delivered and kind != "not stored":
            error = "No space left on device" if kind == "disk full" else ""
            record = Delivered(site=self.name, round=order.round, weights_sha256=digest, seconds=0.0, error=error)
            self.store.write_record(order.delivered, record)
        return Result(
            site=self.name,
            round=order.round + (kind == "other round"),
            parent_sha256="0" * 64 if kind == "stale" else order.parent.sha256,
            begun_sha256=begun if order.own or (order.goes_on and residual != FRESH) else None,
            steps=steps,
            tokens=steps * self.sequences_per_step * self.sequence_length * (100 if kind == "boastful" else 1),
            consumed=tuple(consumed),
            loss_first=3.0 if steps else None,
            loss_last=(2.0 if steps > 1 else 3.0) if steps else None,
            loss_mean=(0.1 if kind == "dreamer" else 2.5 if steps > 1 else 3.0) if steps else None,
            seconds=0.01,
            tokens_per_s=1000.0,
            weights=WrittenWeights(key=order.out, sha256=digest, bytes=size),
            codec=order.codec,
            inner_state=InnerStates(begin=begin, end=end),
            residual=self._keep_left(residual, left) if order.goes_on else None,
            made_with={"torch": "0.4.1" if kind == "other torch" else "2.13.0+cpu"},
            stop="steps" if steps == order.max_steps else "exhausted" if steps == held else "deadline",
        )

    def _left(self, name: str) -> Path:
        path = self.store.here(f"left/{self.name}/{name.removeprefix('sha256:')}.safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _keep_left(self, begin: str, left: dict[str, Floats]) -> InnerStates:
        name = f"sha256:{hashlib.sha256(save(left)).hexdigest()}"
        self._left(name).write_bytes(save(left))
        return InnerStates(begin=begin, end=name)

    @contextmanager
    def _begun(self, order: Order, left: Mapping[str, Floats]) -> Iterator[Path]:
        """The weights that a round starts from; of its own last update the site has what it meant to send."""
        with self.store.local(order.parent.key) as parent:
            own = self._kept(order.own.sha256) if order.own else None
            if own is not None and not own.exists():
                own = None
            if own is None and not left:
                yield parent
                return
            made = self.store.here(f"begun/{self.name}.safetensors")
            write_start(parent, own, order.codec, left, made)
            yield made

    def _kept(self, sha256: str) -> Path:
        return self.store.here(f"own/{self.name}/{sha256}")

    def _write_state(self, order: Order, seed: int, kind: FaultKind | None, has: bool) -> str:
        """An inner state that depends on what the round does; its sha256."""
        if kind == "no state":
            return f"{seed:064x}"
        random = np.random.default_rng(seed)
        with self.store.local(order.parent.key) as parent, TensorFile(parent) as source:
            scale = {"nan state": np.nan, "huge state": 1e30}.get(kind or "", 1.0)
            state: dict[str, Floats] = {
                f"muon/{t.name}/momentum_buffer": random.standard_normal(t.shape, np.float32) * np.float32(scale)
                for t in source.tensors.values()
                if has
            }
        with self.store.new_file(order.inner_out) as out:
            codec = "fp32" if kind == "nan state" else order.inner_codec
            return write_state(out, codec, state).sha256

    def _write(self, parent: Path, out: Path, seed: int, steps: int, kind: FaultKind | None) -> None:
        scale = {"nan": np.nan, "huge": 1e6}.get(kind or "", 1.0) * 1e-2 * steps
        random = np.random.default_rng(seed)
        with TensorFile(parent) as source:
            layout = [(t.name, t.dtype, t.shape) for t in source.tensors.values()]
            if kind == "shape":
                layout[0] = (layout[0][0], layout[0][1], (*layout[0][2], 1))
            with TensorWriter(out, layout) as target:
                for tensor in source.tensors.values():
                    for first, count in pieces(tensor):
                        moved = random.standard_normal(count, np.float32) * np.float32(scale)
                        target.write(from_float32(source.floats(tensor, first, count) - moved, tensor.dtype))


def _code(
    parent: Path, weights: Path, codec: LossyName, left: MutableMapping[str, Floats], fragment: Fragment | None
) -> None:
    """Put what weights moved in their place, and what it leaves out into `left`."""
    with TensorFile(weights) as after, TensorFile(parent) as before:
        write_update(
            weights,
            CODECS[codec],
            before,
            lambda name, first, count: after.floats(after.tensors[name], first, count),
            left,
            fragment,
        )


SLOW_POLLS = 40
"""After which a site that is late answers all the same."""


class MemoryTransport:
    """Runs each site's function in the poll after its order was sent.

    Agents write a heartbeat into the store with every poll, as long as they live.
    """

    def __init__(
        self,
        sites: Mapping[str, Callable[..., Result]],
        store: FolderStore,
        faults: Sequence[Fault] = (),
        on_poll: Callable[[], None] | None = None,
    ) -> None:
        self.sites, self.store, self.on_poll = sites, store, on_poll
        self.faults: dict[tuple[str, int], FaultKind] = {(f.site, f.round): f.kind for f in faults}
        self.sent: list[tuple[str, Order]] = []
        self._pending: list[tuple[str, Order]] = []
        self._dead: set[str] = set()
        self._at_work: dict[str, tuple[Order, FaultKind]] = {}
        self._slow: dict[str, tuple[int, Result]] = {}
        self._pid = dict.fromkeys(sites, 1)
        self._beat = 0
        self._beat_all()

    def send(self, site: str, order: Order) -> None:
        self.sent.append((site, order))
        self._pending.append((site, order))

    def poll(self) -> list[tuple[str, Reply]]:
        if self.on_poll:
            self.on_poll()
        answers: list[tuple[str, Reply]] = []
        for site, (order, fault) in list(self._at_work.items()):
            told = bool(order.late) and self.store.exists(order.late)
            if fault == "late" and (told or self._beat > self._slow[site][0]):
                del self._at_work[site]
                answers.append((site, self._slow[site][1]))
        pending, self._pending = self._pending, []
        for site, order in pending:
            kind = self.faults.get((site, order.round))
            if kind == "kill":
                self._dead.add(site)
            elif kind == "restart":
                self._pid[site] += 1
            elif kind == "error":
                answers.append((site, Failure("trainer answered 500: injected")))
            elif kind in ("mute", "hang", "late"):
                self._at_work[site] = (order, kind)
                if kind == "late":
                    self._slow[site] = self._beat + SLOW_POLLS, self.sites[site](order, kind)
            elif kind != "undelivered":
                self._at_work.pop(site, None)
                answers.append((site, self.sites[site](order, kind)))
        self._beat_all()
        return answers

    def _beat_all(self) -> None:
        self._beat += 1
        for site in self.sites:
            if site not in self._dead:
                doing = self._activity(site)
                at = EPOCH + seconds(self._beat)
                beat = Heartbeat(site=site, pid=self._pid[site], at=at, busy=doing is not None, activity=doing)
                path = self.store.path(agent_key(site))
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(beat.model_dump_json(), encoding="utf-8")  # nobody reads at the same time

    def _activity(self, site: str) -> Activity | None:
        if site not in self._at_work:
            return None
        order, kind = self._at_work[site]
        return Activity(
            **order.model_dump(include={"key", "attempt", "replay", "round"}),
            phase="train",
            count=1 if kind == "hang" else self._beat,
            step_s=3.0,
        )
