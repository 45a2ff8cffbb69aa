"""One segment through Flower, from the caller's side: submit, follow, fetch the outcome."""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from curtail_pipeline.errors import FederationError, StoreError
from curtail_pipeline.federation.plan import folder_of, parse_plan
from curtail_pipeline.flower.control_api import Control, RunStatus
from curtail_pipeline.flower.local import Federation
from curtail_pipeline.flower.trainer_client import Trainer
from curtail_pipeline.storage.store import Store

Progress = Callable[[Mapping[str, Any]], None]

POLL_S = 0.25
STATUS_S = 2.0
_TAIL = 25


class SegmentCancelled(FederationError):
    """The caller asked to stop; nothing of the segment was committed."""


def submit_and_follow(
    federation: Federation,
    plan_key: str,
    store: Store,
    on_progress: Progress = lambda event: None,
    should_cancel: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run the segment of a plan as one Flower run and return its `segment.json`.

    Called again for the same plan (the caller was killed meanwhile) it returns the outcome if there is one, else
    follows the run that goes on, else submits again.

    Args:
        plan_key: store key of `plan.json`; everything else of the segment is written beside it.
        on_progress: called with `{"event": "submitted", "run_id"}`, then `{"event": "step", "site", "round", "step",
            "loss", "tokens_per_s"}` every 2 s per site, `{"event": "round", "round", "steps", "loss"}` after
            every merge, and `{"event": "refused" | "lost", "site", "round", "reason"}`.
        should_cancel: asked several times a second; true ends the run.

    Raises:
        FederationError: the federation is not ready, or the run failed; the message ends with its log.
        SegmentCancelled: `should_cancel` returned true.
    """
    folder = folder_of(plan_key)
    plan = parse_plan(store.read_json(plan_key), plan_key)
    if store.exists(f"{folder}/segment.json"):
        return _outcome(store, folder)
    state = federation.wait_ready(plan.members)
    with Control(state["superlink"]["address"]) as control:
        run_id = _attach(control, store, plan_key)
        if run_id is None:
            store.delete(f"{folder}/rounds.jsonl")
            nodes = {site: state["sites"][site]["supernode"]["node_id"] for site in plan.members}
            run_id = control.start_run(
                {
                    "store": str(store.root),
                    "plan": plan_key,
                    "nodes": json.dumps(nodes),
                    "liveness-s": float(federation.liveness_s),
                }
            )
        store.write_json(f"{folder}/flower.json", {"run_id": run_id, "superlink": state["superlink"]["address"]})
        on_progress({"event": "submitted", "run_id": run_id})
        follower = _Follower(federation, control, store, folder, run_id, plan.members, on_progress, should_cancel)
        try:
            return follower.follow()
        except FederationError:
            follower.stop_sites()
            raise
        except BaseException:  # an orchestrator's interrupt is no Exception, and the sites would train on
            follower.cancel()
            raise


def _attach(control: Control, store: Store, plan_key: str) -> int | None:
    """The run that is working on this plan, if there is one.

    The SuperLink is asked, not `flower.json`: the caller may have been killed between submitting and writing it.
    """
    for run_id, run in sorted(control.runs().items(), reverse=True):
        if run.config.get("plan") == plan_key and run.config.get("store") == str(store.root) and not run.finished:
            return run_id
    return None


class _Follower:
    def __init__(
        self,
        federation: Federation,
        control: Control,
        store: Store,
        folder: str,
        run_id: int,
        members: list[str],
        on_progress: Progress,
        should_cancel: Callable[[], bool],
    ) -> None:
        self.federation, self.control, self.store, self.folder = federation, control, store, folder
        self.run_id, self.members = run_id, members
        self.on_progress, self.should_cancel = on_progress, should_cancel
        self.seen_rounds = 0
        self.seen_steps: dict[str, Any] = {}

    def follow(self) -> dict[str, Any]:
        asked = 0.0
        while True:
            if self.should_cancel():
                self.control.stop_run(self.run_id)
                raise SegmentCancelled(f"{self.folder}: cancelled while Flower run {self.run_id} was going on")
            # the ServerApp writes the outcome last; Flower takes another second to call the run finished
            over = self.store.exists(f"{self.folder}/segment.json")
            for event in self.round_events():
                self.on_progress(event)
            if over:
                return _outcome(self.store, self.folder)
            if time.monotonic() - asked > STATUS_S:
                asked = time.monotonic()
                self.check(self.control.status(self.run_id))
                for event in self.step_events():
                    self.on_progress(event)
            time.sleep(POLL_S)

    def check(self, run: RunStatus | None) -> None:
        """Raise when the run has ended without an outcome."""
        if run is not None and (not run.finished or self.store.exists(f"{self.folder}/segment.json")):
            return
        if run is None:
            raise FederationError(f"{self.folder}: the SuperLink no longer knows run {self.run_id}; it was restarted")
        try:
            log = self.control.logs(self.run_id)
        except FederationError as error:
            log = str(error)
        ending = "\n".join(log.splitlines()[-_TAIL:])
        why = f"{run.sub_status}: {run.details or 'no details'}"
        raise FederationError(f"{self.folder}: Flower run {self.run_id} {why}; its log ends:\n{ending}")

    def round_events(self) -> Iterator[dict[str, Any]]:
        try:
            lines = self.store.read_bytes(f"{self.folder}/rounds.jsonl").splitlines()
        except StoreError:
            return
        for line in lines[self.seen_rounds :]:
            self.seen_rounds += 1
            done = json.loads(line)
            number = done["index"]
            tokens = sum(done["tokens"].values())
            losses = [(done["tokens"][site], last) for site, (_, last) in done["loss"].items() if last is not None]
            loss = sum(count * last for count, last in losses) / tokens if losses and tokens else None
            yield {"event": "round", "round": number, "steps": done["steps"], "tokens": tokens, "loss": loss}
            for kind in ("refused", "lost"):
                for site, reason in done[kind].items():
                    yield {"event": kind, "site": site, "round": number, "reason": reason}

    def step_events(self) -> Iterator[dict[str, Any]]:
        for site in self.members:
            with contextlib.suppress(FederationError):
                status = Trainer(self.federation.endpoint(site)).call("GET", "/status", timeout_s=1.0)
                event = {name: status.get(name) for name in ("round", "step", "loss", "tokens_per_s")}
                if status.get("busy") and event != self.seen_steps.get(site):
                    self.seen_steps[site] = event
                    yield {"event": "step", "site": site, **event}

    def cancel(self) -> None:
        """End the run and have its members finish their current step."""
        self.stop_sites()
        with contextlib.suppress(FederationError):
            self.control.stop_run(self.run_id)

    def stop_sites(self) -> None:
        """Have the members finish their current step: stopping a Flower run does not reach them."""
        for site in self.members:
            with contextlib.suppress(FederationError):
                Trainer(self.federation.endpoint(site)).call("POST", "/stop", {}, timeout_s=30.0)


def _outcome(store: Store, folder: str) -> dict[str, Any]:
    segment: dict[str, Any] = store.read_json(f"{folder}/segment.json")
    if not store.exists(segment["weights"]["key"]):
        raise FederationError(f"{folder}: {segment['weights']['key']} is gone; run the segment as another attempt")
    return segment
