"""How long until a part of a federation that died is known to be gone: a standing SuperLink, sites that share a bucket.

In the middle of a long round one part is killed; what ends the clock is what the one who runs the segment is told: the
site is lost, and why, or the Flower run is, and another one goes on. Each part has a round of its own. The limit is the
product's, `federation.liveness_s`; Flower's own for a silent node is two intervals of 30 s (flwr.common.constant 1.41).
"""

import contextlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from curtail_pipeline.benchmarks.chaos_experiment import CURTAILED, NAME, SEQUENCE, START, write_experiment
from curtail_pipeline.benchmarks.chaos_setups import Part, Remote
from curtail_pipeline.errors import CurtailError, FederationError, SettingsError
from curtail_pipeline.federation.liveness import last_beat
from curtail_pipeline.federation.orders import OuterSettings, Plan, PlannedRound
from curtail_pipeline.federation.plan import plan_key, scratch_of
from curtail_pipeline.federation.progress import Resubmitted, SegmentEvent, SiteLost
from curtail_pipeline.flower.standing import StandingFederation
from curtail_pipeline.flower.submit import SegmentCancelled, submit_and_follow
from curtail_pipeline.settings.federation_settings import DEFAULT_LIMITS
from curtail_pipeline.stages.parents import parent_checkpoint
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.storage.records import Json
from curtail_pipeline.tokens.ranges import Range

LONG, SHORT = "NORTH", "SOUTH"
"""The site whose part dies trains on and on; the other has delivered before."""
STEPS, PASS_STEPS = 100_000, 4
"""Of the round, and of one pass through a few sequences: more than anybody waits for."""
PREPARED_S, BEGUN_S, KNOWN_S = 300.0, 150.0, 90.0
LOOK_S = 0.05


@dataclass
class Seen:
    """What the one who runs the segment was told, with monotonic times."""

    told: list[tuple[float, str]] = field(default_factory=list)

    def __call__(self, event: SegmentEvent) -> None:
        if isinstance(event, SiteLost) and event.site == LONG:
            self.told.append((time.monotonic(), event.reason))
        if isinstance(event, Resubmitted):
            self.told.append((time.monotonic(), event.reason))


def run(parts: str = ",".join(Part), keep: str = "") -> Mapping[str, object]:
    """Seconds by part, the longest of them, and what was said; a part of which nothing was said is null.

    Args:
        parts: which, separated by commas.
        keep: a folder to work in, left as it is.
    """
    wanted = parts.split(",")
    if unknown := [name for name in wanted if name not in [*Part]]:
        raise SettingsError(f"no part {unknown[0]!r}; there are {', '.join(Part)}")
    known: dict[str, float | None] = {}
    said: dict[str, str] = {}
    with contextlib.ExitStack() as held:
        folder = Path(keep or held.enter_context(tempfile.TemporaryDirectory(prefix="bench-lost-")))
        setup = held.enter_context(_standing(folder))
        for number, part in enumerate(wanted, start=1):
            known[part], said[part] = _killed(setup, Part(part), f"ckpt-{number:06d}")
    return {
        "limit_s": DEFAULT_LIMITS.liveness_s,
        "known_after_s": known,
        "said": said,
        "longest_s": max((s for s in known.values() if s is not None), default=None),
        "unknown": [part for part, s in known.items() if s is None],
        "load": round(os.getloadavg()[0], 1),
    }


@contextmanager
def _standing(folder: Path) -> Iterator[Remote]:
    """Sites that have text and a model, and nothing to do: the replayed time ends before any window."""
    folder.mkdir(exist_ok=True)
    experiment = write_experiment(folder)
    settings: dict[str, Json] = yaml.safe_load(experiment.read_text())
    end = START.replace(minute=5).isoformat()
    experiment.write_text(yaml.safe_dump({**settings, "clock": {"end": end}}))
    setup = Remote(folder, experiment, NAME, [*CURTAILED])
    try:
        process = setup.launch(setup.words(), folder / "log")
        if process.wait(PREPARED_S) != 0:
            raise FederationError(f"nothing was prepared: {(folder / 'log').read_text()[-500:]}")
        yield setup
    finally:
        setup.close()


def _killed(setup: Remote, part: Part, key: str) -> tuple[float | None, str]:
    """Kill it in the middle of a round of its own."""
    store, seen, over = setup.store, Seen(), threading.Event()
    _wait(setup.ready, BEGUN_S, "all parts to be there")
    folder = scratch_of(key, 1)
    store.write_record(plan_key(folder), _plan(setup, key))
    federation = StandingFederation(setup.folder / "run", BEGUN_S, DEFAULT_LIMITS, setup.superlink, None)
    failed: list[str] = []

    def follow() -> None:
        try:
            submit_and_follow(federation, plan_key(folder), store, seen, over.is_set)
        except SegmentCancelled:
            pass
        except CurtailError as error:
            failed.append(str(error))

    def in_the_middle() -> bool:
        if failed:
            raise FederationError(f"the round for {part} did not begin: {failed[0]}")
        beat = last_beat(store, LONG)
        at_work = beat is not None and beat.activity is not None and beat.activity.key == key
        return at_work and store.exists(f"{folder}/round-0000/{SHORT}.safetensors")

    thread = threading.Thread(target=follow, name=key)
    thread.start()
    try:
        _wait(in_the_middle, BEGUN_S, f"the round for {part} to begin")
        pid = setup.pid(LONG, part)
        if pid is None:
            raise FederationError(f"there is no {part} to kill")
        at = time.monotonic()
        psutil.Process(pid).kill()
        with contextlib.suppress(FederationError):
            _wait(lambda: bool(seen.told) or bool(failed), KNOWN_S, "it to be known")
    finally:
        over.set()
        thread.join()
    told = seen.told[0] if seen.told else None
    return (round(told[0] - at, 1), told[1]) if told else (None, failed[0] if failed else "")


def _plan(setup: Remote, key: str) -> Plan:
    parent = Checkpoints(setup.store, SEQUENCE).manifest("ckpt-000000")
    lease: dict[str, tuple[Range, ...]] = {
        LONG: tuple((epoch, 0, 32) for epoch in range(1, STEPS // 8)),
        SHORT: ((1, 0, 8),),
    }
    return Plan(
        key=key,
        parent=parent_checkpoint(setup.store, parent),
        members=(LONG, SHORT),
        mode="federated",
        first_step=0,
        total_steps=STEPS,
        rounds=(PlannedRound(index=0, steps={LONG: STEPS, SHORT: 1}, lease=lease),),
        outer=OuterSettings(lr=1.0, momentum=0.0),
        norm_bound=5.0,
    )


def _wait(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """
    Raises:
        FederationError: in vain.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise FederationError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(LOOK_S)
