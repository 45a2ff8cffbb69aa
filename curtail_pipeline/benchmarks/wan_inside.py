"""What `bench_wan` runs inside its spaces; each prints JSON, a line at a time.

python -m curtail_pipeline.benchmarks.wan_inside run EXPERIMENT s3://...     # in the hub: as `curtail run`
python -m curtail_pipeline.benchmarks.wan_inside watch ENDPOINT              # at a site: what its trainer does, when
python -m curtail_pipeline.benchmarks.wan_inside refusals SITE FRONT CA KEY OWN_NODE OTHER_NODE     # at a site
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

from curtail_pipeline.errors import FederationError
from curtail_pipeline.flower import control_api as control
from curtail_pipeline.flower.fleet_client import Fleet
from curtail_pipeline.flower.keys import public_key_of
from curtail_pipeline.flower.processes import free_port
from curtail_pipeline.flower.standing import BINARIES, Credentials
from curtail_pipeline.storage.records import Json

WATCH_S = 0.1


def _say(content: Mapping[str, Json]) -> None:
    print(json.dumps(content, default=str), flush=True)


def run(experiment: str, out: str) -> None:
    """The whole pipeline, headless; an event a line, each with its wall time."""
    from curtail_pipeline.definitions import build
    from curtail_pipeline.orchestration.headless import Headless, open_instance
    from curtail_pipeline.stages.project import CLOCK_ENV, EXPERIMENT_ENV, Project
    from curtail_pipeline.stages.run_events import Committed, Event
    from sensors.membership import membership_sensor

    def observe(event: Event) -> None:
        if isinstance(event, Committed):
            found = event.manifest
            _say(
                {
                    "event": "Committed",
                    "at": time.time(),
                    "key": found.key,
                    "mode": found.mode,
                    "members": [*found.members],
                }
            )
        elif is_dataclass(event):
            content = {field.name: getattr(event, field.name) for field in fields(event)}
            _say({"event": type(event).__name__, "at": time.time(), **content})

    project = Project.open(experiment, "headless", out)
    os.environ[EXPERIMENT_ENV], os.environ[CLOCK_ENV] = str(project.home.experiment_file), "headless"
    with project.home.lock(), open_instance(project) as instance:
        reason = Headless(project, instance, build(observe), membership_sensor, observe).run()
    keys = project.checkpoints.verify_chain()
    _say({"event": "ended", "at": time.time(), "reason": reason, "checkpoints": [*keys]})
    os._exit(0)  # taking down all that was imported takes seconds, and nothing is left to do


def watch(endpoint: str) -> None:
    """Every change of what the trainer of this site does."""
    from curtail_pipeline.flower.trainer_client import Trainer

    before: dict[str, Json] = {}
    trainer: Trainer | None = None
    while True:
        try:
            trainer = trainer or Trainer(Path(endpoint))
            status = trainer.status()
            now: dict[str, Json] = status.model_dump(include={"pid", "key", "round", "phase", "steps"})
        except FederationError:
            trainer, now = None, {"pid": None}
        if now != before:
            _say({"at": time.time(), **now})
            before = now
        time.sleep(WATCH_S)


def refusals(site: str, front: str, authority: str, key: str, own: str, other: str) -> None:
    """What a site must not be able to do, tried; true where it was refused.

    Args:
        front: host:port by which sites know the SuperLink.
        key: private key of a site whose node is online.
        own: id of that node.
        other: id of another site's node.
    """
    _say(
        {
            "unregistered": _unregistered(site, front, authority),
            "plain_text": _plain_text(front),
            "control_from_outside": _control_from_outside(front, Path(authority)),
            "foreign_signature": _foreign_signature(front, Path(authority), Path(key), int(own), int(other)),
        }
    )


def _unregistered(site: str, front: str, authority: str) -> bool:
    """Join with a key that nobody has registered."""
    key = Path("stranger")
    public_key_of(key)
    words = [
        str(BINARIES / "flower-supernode"), *Credentials(Path(authority), key).arguments(), "--superlink", front,
        "--host", "127.0.0.1", "--port", str(free_port()), "--node-config", f'name="{site}"',
    ]  # fmt: skip
    environment = {**os.environ, **control.ENVIRONMENT, "FLWR_HOME": str(Path("flwr-stranger").resolve())}
    log = Path("stranger.log")
    with log.open("wb") as stream:
        code = subprocess.run(words, env=environment, stdout=stream, stderr=stream, timeout=120).returncode
    return code != 0 and "Failed to activate SuperNode" in log.read_text()


def _plain_text(front: str) -> bool:
    """Say something without TLS, to the same port."""
    import httpx

    with httpx.Client(trust_env=False) as client:
        try:
            return client.post(f"http://{front}/v1/fleet/pull-messages").status_code == 400
        except httpx.RemoteProtocolError:  # the SuperLink itself says nothing at all
            return True


def _control_from_outside(front: str, authority: Path) -> bool:
    """Call the APIs that start code: through the front, and at the SuperLink's own port."""
    import httpx

    host = front.split(":")[0]
    with httpx.Client(verify=control.trusting(authority), trust_env=False) as client:
        answers = [
            client.post(f"https://{front}/v1/{path}").status_code
            for path in ("control/list-nodes", "control/start-run", "runtime/pull-task", "../health")
        ]
    with socket.socket() as probe:
        probe.settimeout(5)
        closed = probe.connect_ex((host, 8000)) != 0
    return closed and {*answers} == {403}


def _foreign_signature(front: str, authority: Path, key: Path, own: int, other: int) -> bool:
    """Speak for the node of another site with an own key, which is good for the own node."""
    with Fleet(front, authority, key) as fleet:
        return (fleet.beat(own), fleet.beat(other)) == (200, 401)


if __name__ == "__main__":
    {"run": run, "watch": watch, "refusals": refusals}[sys.argv[1]](*sys.argv[2:])  # type: ignore[operator]
