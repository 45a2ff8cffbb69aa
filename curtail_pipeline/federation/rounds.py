"""The rounds of a segment: send orders, wait for results, merge, again. Knows nothing of Flower.

What can fail, and what follows:

- *A site is lost* (its agent's heartbeat stands still for `liveness_s`, its agent restarted while it worked on the
  order, or the transport reports a failure): the round goes on with the others, the segment ends after it, and the stop
  reason names the site. A reply that arrives later is ignored.
- *An update is refused* (see `outer.merge`; also a result that does not fit its order): the round goes on with the
  others and the site takes part in the next one.
- In both cases nothing the site did counts: its next order starts from the inner state of its last accepted result, and
  its lease starts again at the ranges it was given.
- *No site delivers* in a round: the round's starting weights go on.
- *No site delivers in the whole segment*, and not because all left: `FederationError`, nothing to commit.
- *This process dies*: `rounds.jsonl` is whole (every write is atomic); the segment starts anew as another attempt.
- *Another attempt of the same key was planned*: `FederationError` at the next round boundary.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from curtail_pipeline.errors import FederationError, LedgerError, StoreError
from curtail_pipeline.federation.merge import MergeReport, Update, merge
from curtail_pipeline.federation.orders import agent_key
from curtail_pipeline.federation.plan import Plan, Range, folder_of, parse_plan
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY
from curtail_pipeline.storage.store import Store, canonical_json
from curtail_pipeline.times import iso, utc_now
from curtail_pipeline.tokens.ranges import after_prefix, compact, total

POLL_S = 0.2
LONGEST_POLL_S = 1.0

Order = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """An order that will have no result, and why."""

    reason: str


class Transport(Protocol):
    """How orders reach sites. `poll` returns at once with whatever has arrived since the last call."""

    def send(self, site: str, order: Order) -> None: ...

    def poll(self) -> list[tuple[str, Result | Failure]]: ...


class _Weights(BaseModel):
    key: str
    sha256: str


class _InnerState(BaseModel):
    begin: str
    end: str


class _Result(BaseModel):
    """The part of a result that is relied on; the rest is passed on to `rounds.jsonl` as it is."""

    model_config = ConfigDict(extra="ignore")
    site: str
    round: int
    parent_sha256: str
    steps: int
    tokens: int
    consumed: list[Range]
    weights: _Weights
    inner_state: _InnerState
    stop: str


class Liveness:
    """Tells from heartbeats whether a site still works on the order it was sent.

    Only changes of the heartbeat count, on this machine's monotonic clock; the clocks of sites need not agree.
    """

    def __init__(self, store: Store, liveness_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._limit, self._clock = store, liveness_s, clock
        self._seen: dict[str, tuple[float, Any]] = {}
        self._pid: dict[str, Any] = {}

    def _read(self, site: str) -> Any:
        try:
            return self._store.read_json(agent_key(site))
        except StoreError:
            return None

    def watch(self, site: str) -> None:
        """Start watching: an order goes out now."""
        beat = self._read(site)
        self._seen[site] = (self._clock(), beat)
        self._pid[site] = beat.get("pid") if isinstance(beat, dict) else None

    def lost(self, site: str) -> str | None:
        """Why the site counts as lost, or None while it is alive."""
        beat, now = self._read(site), self._clock()
        since, last = self._seen[site]
        if beat is not None and beat != last:
            self._seen[site] = (now, beat)
            pid = beat.get("pid") if isinstance(beat, dict) else None
            if self._pid[site] is None:
                self._pid[site] = pid
            elif pid != self._pid[site]:
                return f"its agent restarted (process {self._pid[site]} became {pid})"
            return None
        return f"no heartbeat for {now - since:.0f} s" if now - since > self._limit else None


@dataclass
class _Site:
    """What a segment knows of a member between rounds."""

    inner_state: str
    begin: str
    pool: list[list[Any]] = field(default_factory=list)
    steps: int = 0
    tokens: int = 0
    consumed: list[list[Any]] = field(default_factory=list)


@dataclass
class _Round:
    index: int
    start: str | None
    end: str | None
    steps: dict[str, int]
    members: int
    deadline_s: float | None
    stops: dict[str, str]


class Segment:
    """One segment while it runs. `run` is the whole of it; use `run_segment`."""

    def __init__(
        self,
        transport: Transport,
        plan: Plan,
        folder: str,
        store: Store,
        *,
        liveness_s: float,
        clock: Callable[[], float],
        wait: Callable[[float], None],
        log: Callable[[str], None],
    ) -> None:
        self.transport, self.plan, self.folder, self.store = transport, plan, folder, store
        self.liveness = Liveness(store, liveness_s, clock)
        self.wait, self.log = wait, log
        fresh = {site: plan.inner_state.get(site, "fresh") for site in plan.members}
        self.sites = {site: _Site(state, state) for site, state in fresh.items()}
        if plan.open:
            for site, site_lease in plan.open.lease.items():
                self.sites[site].pool = compact(site_lease)
        self.step = plan.first_step
        self.weights = {"key": plan.parent.weights, "sha256": plan.parent.sha256}
        self.outer: dict[str, Any] = {"key": plan.parent.outer, "sha256": None}
        self.norm_history = list(plan.norm_history)
        self.generation = plan.open.generation if plan.open else plan.generation
        self.lost: dict[str, str] = {}
        self.refusals: dict[str, str] = {}
        self.rounds: list[dict[str, Any]] = []
        self._journal = b""

    def run(self) -> dict[str, Any]:
        stop_reason = ""
        for number in range(len(self.plan.rounds) if self.plan.rounds is not None else self._cap()):
            stop_reason = self._boundary()
            if stop_reason:
                break
            upcoming = self._next(number)
            if not upcoming.steps:
                stop_reason = "no member has tokens left in its lease"
                break
            self._round(upcoming)
        else:
            # the end of the plan, or something that the last round brought about
            stop_reason = self._boundary() or ("length cap" if self.plan.open else self.plan.stop_reason)
        if not any(site.steps for site in self.sites.values()) and (self.lost or self.refusals):
            why = "; ".join(f"{site}: {reason}" for site, reason in (self.refusals | self.lost).items())
            raise FederationError(
                f"{self.plan.key}: no site delivered an update that could be used ({why}); see the trainers' logs"
            )
        return self._result(stop_reason)

    def _cap(self) -> int:
        assert self.plan.open is not None
        return self.plan.open.max_rounds

    def _boundary(self) -> str:
        """Why no further round may start; empty when one may."""
        if not self.plan.replay and self.store.exists(f"scratch/{self.plan.key}/{self.plan.attempt + 1}/plan.json"):
            raise FederationError(
                f"{self.plan.key}: attempt {self.plan.attempt} was superseded by attempt {self.plan.attempt + 1}"
            )
        if self.lost:
            return "; ".join(f"{site} lost: {reason}" for site, reason in self.lost.items())
        if self.plan.open:
            if self.step >= self.plan.total_steps:
                return "job finished"
            return self._membership_change()
        return ""

    def _membership_change(self) -> str:
        """Compare the desired membership with this segment's; adopt a newer generation that wants the same members."""
        if not self.store.exists(MEMBERSHIP_KEY):
            return ""
        desired = self.store.read_json(MEMBERSHIP_KEY)
        if desired["generation"] <= self.generation:
            return ""
        trains = [site for site, state in desired["states"].items() if _state(state) == "train"]
        joins = sorted(set(trains) - set(self.plan.members))
        leaves = sorted(set(self.plan.members) - set(trains))
        if not joins and not leaves:
            self.generation = desired["generation"]
            return ""
        parts = [f"{site} leaves" + _because(desired["states"].get(site)) for site in leaves]
        return "; ".join([*parts, *(f"{site} joins" for site in joins)])

    def _next(self, number: int) -> _Round:
        if self.plan.rounds is not None:
            planned = self.plan.rounds[number]
            for site, lease in planned.lease.items():
                if site in planned.steps:
                    self.sites[site].pool = compact([*self.sites[site].pool, *lease])
            return _Round(
                planned.index,
                planned.start,
                planned.end,
                dict(planned.steps),
                planned.members or len(planned.steps),
                None,
                dict(planned.stops),
            )
        assert self.plan.open is not None
        members = [site for site in self.plan.members if self.sites[site].pool]
        left = self.plan.total_steps - self.step
        shares = {
            site: left // len(members) + (1 if place < left % len(members) else 0) for place, site in enumerate(members)
        }
        steps = {site: share for site, share in shares.items() if share}
        return _Round(number, None, None, steps, len(steps), self.plan.open.round_s, {})

    def _order(self, upcoming: _Round, site: str) -> Order:
        plan = self.plan
        watch = {"key": MEMBERSHIP_KEY, "generation": self.generation} if plan.open else None
        return {
            "schema": 1,
            "key": plan.key,
            "attempt": plan.attempt,
            "round": upcoming.index,
            "site": site,
            "experiment_uri": plan.experiment_uri,
            "store": str(self.store.root),
            "parent": dict(self.weights),
            "config": plan.parent.config,
            "inner_state": self.sites[site].inner_state,
            "first_step": self.step,
            "members": upcoming.members,
            "total_steps": plan.total_steps,
            "max_steps": upcoming.steps[site],
            "deadline_s": upcoming.deadline_s,
            "lease": [list(part) for part in self.sites[site].pool],
            "seed": plan.seed,
            "watch": watch,
            "out": f"{self.folder}/round-{upcoming.index:04d}/{site}.safetensors",
        }

    def _round(self, upcoming: _Round) -> None:
        begun, before = iso(utc_now()), self.step
        orders = {site: self._order(upcoming, site) for site in self.plan.members if site in upcoming.steps}
        for site, order in orders.items():
            self.liveness.watch(site)
            self.transport.send(site, order)
        results, lost = self._collect(upcoming.index, set(orders))
        fitting, refused = self._check(orders, results)
        report = self._merge(upcoming.index, fitting)
        refused |= report.refused
        for site in sorted(fitting.keys() - report.refused.keys()):
            self._accept(site, orders[site], fitting[site])
        self.step += sum(fitting[site].steps for site in report.accepted)
        self.lost |= lost
        self.refusals |= refused
        self.norm_history = report.norm_history
        counted = {site: results[site] for site in sorted(report.accepted)}
        done = {
            "index": upcoming.index,
            "start": upcoming.start or begun,
            "end": upcoming.end or iso(utc_now()),
            "members": upcoming.members,
            "steps": {site: int(result["steps"]) for site, result in counted.items()},
            "tokens": {site: result["tokens"] for site, result in counted.items()},
            "consumed": {site: compact(result["consumed"]) for site, result in counted.items()},
            "loss": {site: [result.get("loss_first"), result.get("loss_last")] for site, result in counted.items()},
            "stops": upcoming.stops | {s: r["stop"] for s, r in counted.items() if r["stop"] != "steps"},
            "refused": refused,
            "lost": lost,
            "weights": dict(self.weights),
        }
        self.rounds.append(done)
        self._write_journal(done | {"orders": orders, "results": results, "merge": report.as_dict()})
        self._tidy(upcoming.index, list(orders))
        self.log(
            f"round {upcoming.index}: {self.step - before} steps by {', '.join(counted) or 'no site'}"
            + "".join(f"; {site} refused: {why}" for site, why in refused.items())
            + "".join(f"; {site} lost: {why}" for site, why in lost.items())
        )

    def _collect(self, index: int, pending: set[str]) -> tuple[dict[str, Result], dict[str, str]]:
        results: dict[str, Result] = {}
        lost: dict[str, str] = {}
        pause = POLL_S
        while True:
            for site, answer in self.transport.poll():
                if site not in pending:
                    continue
                if isinstance(answer, Failure):
                    lost[site] = answer.reason
                elif answer.get("round") == index:
                    results[site] = answer
                else:
                    continue
                pending.discard(site)
            for site in sorted(pending):
                reason = self.liveness.lost(site)
                if reason:
                    lost[site] = reason
                    pending.discard(site)
            if not pending:
                return results, lost
            self.wait(pause)
            pause = min(pause * 1.05, LONGEST_POLL_S)  # polls are not free: seldom in a long round, soon in a short one

    def _check(self, orders: dict[str, Order], results: dict[str, Result]) -> tuple[dict[str, _Result], dict[str, str]]:
        """Split results into those that fit their orders and those refused, with the reason."""
        fitting: dict[str, _Result] = {}
        refused: dict[str, str] = {}
        for site, raw in sorted(results.items()):
            order = orders[site]
            try:
                result = _Result.model_validate(raw)
                after_prefix(order["lease"], result.consumed)
            except ValidationError as error:
                refused[site] = f"its result is malformed: {error.errors()[0]['loc']} {error.errors()[0]['msg']}"
                continue
            except LedgerError as error:
                refused[site] = str(error)
                continue
            if result.site != site:
                refused[site] = f"its result is signed by {result.site!r}"
            elif result.weights.key != order["out"]:
                refused[site] = f"its weights lie at {result.weights.key!r}, not at {order['out']!r}"
            elif result.inner_state.begin != order["inner_state"]:
                refused[site] = f"it began with state {result.inner_state.begin}, not {order['inner_state']}"
            elif not 0 <= result.steps <= order["max_steps"]:
                refused[site] = f"it took {result.steps} steps, {order['max_steps']} were asked for"
            elif (result.tokens > 0) != (result.steps > 0) or (result.steps > 0) != (total(result.consumed) > 0):
                refused[site] = f"{result.steps} steps, {result.tokens} tokens and {result.consumed} do not agree"
            else:
                fitting[site] = result
        return fitting, refused

    def _merge(self, index: int, fitting: dict[str, _Result]) -> MergeReport:
        plan, store = self.plan, self.store
        folder = f"{self.folder}/round-{index:04d}"
        updates = [
            Update(site, store.path(r.weights.key), r.tokens, r.weights.sha256, r.parent_sha256, r.round)
            for site, r in fitting.items()
        ]
        report = merge(
            store.path(self.weights["key"]),
            store.path(self.outer["key"]) if self.outer["key"] else None,
            updates,
            plan.mode,
            plan.outer.lr,
            plan.outer.momentum,
            store.path(f"{folder}/model.safetensors"),
            store.path(f"{folder}/outer.safetensors"),
            plan.norm_bound,
            self.norm_history,
            parent_sha256=self.weights["sha256"],
            round_index=index,
        )
        self.weights = {"key": f"{folder}/model.safetensors", "sha256": report.weights["sha256"]}
        self.outer = {"key": f"{folder}/outer.safetensors", "sha256": report.outer["sha256"]}
        return report

    def _accept(self, site: str, order: Order, result: _Result) -> None:
        mine = self.sites[site]
        mine.pool = after_prefix(order["lease"], result.consumed)
        mine.inner_state = result.inner_state.end
        mine.steps += result.steps
        mine.tokens += result.tokens
        mine.consumed = compact([*mine.consumed, *result.consumed])

    def _write_journal(self, entry: dict[str, Any]) -> None:
        line = canonical_json(entry).replace(b"\n", b"")
        self._journal += line + b"\n"
        self.store.write_bytes(f"{self.folder}/rounds.jsonl", self._journal)

    def _tidy(self, index: int, sites: list[str]) -> None:
        """Remove what the merged weights of this round have superseded."""
        for site in sites:
            self.store.delete(f"{self.folder}/round-{index:04d}/{site}.safetensors")
        for earlier in self.rounds[:-1]:
            self.store.delete(f"{self.folder}/round-{earlier['index']:04d}")

    def _result(self, stop_reason: str) -> dict[str, Any]:
        return {
            "key": self.plan.key,
            "attempt": self.plan.attempt,
            "rounds": self.rounds,
            "sites": {
                site: {
                    "steps": mine.steps,
                    "tokens": mine.tokens,
                    "consumed": mine.consumed,
                    "inner_state": {"begin": mine.begin, "end": mine.inner_state},
                }
                for site, mine in self.sites.items()
            },
            "weights": self.weights,
            "outer": self.outer,
            "stop_reason": stop_reason,
            "steps": sum(mine.steps for mine in self.sites.values()),
            "tokens": sum(mine.tokens for mine in self.sites.values()),
            "norm_history": self.norm_history,
            "lost": self.lost,
            "refused": self.refusals,
        }


def _state(entry: Any) -> str:
    return entry["state"] if isinstance(entry, dict) else entry


def _because(entry: Any) -> str:
    reason = entry.get("reason") if isinstance(entry, dict) else None
    return f": {reason}" if reason else ""


def run_segment(
    transport: Transport,
    plan: dict[str, Any],
    store: Store,
    *,
    folder: str | None = None,
    liveness_s: float = 10.0,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
    log: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run a segment to its end; write `rounds.jsonl` per round and `segment.json` last, and return the latter.

    Args:
        transport: how orders reach the members.
        plan: the content of `plan.json`.
        folder: scratch folder (a store key); `scratch/<key>/<attempt>` when not given.
        liveness_s: a site whose heartbeat stands still for longer (wall seconds) is lost.
        clock, wait: monotonic seconds and sleep; a test passes its own.

    Raises:
        FederationError: the plan is invalid, no site delivered, or another attempt took over.
    """
    parsed = parse_plan(plan, f"the plan of {plan.get('key', '?')}")
    place = folder or f"scratch/{parsed.key}/{parsed.attempt}"
    segment = Segment(transport, parsed, place, store, liveness_s=liveness_s, clock=clock, wait=wait, log=log)
    outcome = segment.run()
    store.write_json(f"{place}/segment.json", outcome)
    return outcome


def run_plan(transport: Transport, plan_key: str, store: Store, **options: Any) -> dict[str, Any]:
    """`run_segment` for a plan in the store; the segment is written beside it."""
    return run_segment(transport, store.read_json(plan_key), store, folder=folder_of(plan_key), **options)
