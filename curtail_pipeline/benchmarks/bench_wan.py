"""Three sites that share nothing with each other or the coordinator but a line of 100 Mbit/s and 150 ms.

    sudo curtail bench wan                    # d4, 36.7 M parameters; --model tiny for a quick look
    sudo curtail bench wan --arms fp32,int8   # one run per codec of what is sent
    sudo curtail bench wan --arms int8,int8+overlap    # with rounds that are merged while the next one trains
    sudo curtail bench wan --linked north,south,east   # no site has credentials of the bucket

Coordinator (SuperLink behind `deploy/nginx/superlink.conf`, S3 server, the run) and sites are spaces of their own
(`network_spaces`); each site has its own key, and S3 behind TLS. Lines are shaped by `tc tbf` and delayed by a relay
(`delay_relay`), half of the round trip each way. What they do is `wan_job`'s. What is written is wall time; the
machine's load is part of it.
"""

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import psutil
import yaml

from curtail_pipeline.benchmarks.bench_exchange import measure
from curtail_pipeline.benchmarks.network_spaces import (
    MAKES_DISKS,
    WORK,
    Space,
    common_paths,
    link,
    program,
    software_paths,
    spaces,
    why_not,
)
from curtail_pipeline.benchmarks.projection import DOWN
from curtail_pipeline.benchmarks.wan_figures import Line, arm_of, figures
from curtail_pipeline.benchmarks.wan_job import (
    CURTAILED,
    JOINS,
    MODELS,
    PARTS,
    Arm,
    arms_of,
    experiment,
    linked_of,
    trace,
)
from curtail_pipeline.errors import FederationError, MessageError, SettingsError
from curtail_pipeline.settings.federation_settings import CodecName
from curtail_pipeline.storage.held_folder import held_folder
from curtail_pipeline.storage.records import Json, read_record

FRONT_HOST, S3_HOST = "superlink.wan", "store.wan"
BUCKET = "wan"
STORE = f"s3://{BUCKET}/run"
TRACE = f"{WORK}/trace.csv"
FRONT_PORT, S3_PORT = 8443, 9443
MEASURED = {"d4": "124M", "tiny": "7M"}
"""Of `bench_exchange.WIDTHS`, what is projected from beside a job of this model."""
DISK_GIB = {"d4": 40}
"""Of each space, by model; in memory elsewhere. A round of d4 leaves 1.2 GB behind in buckets and caches: in memory,
24 GiB were full after six."""
READY_S = 400.0
RUN_S = 1800.0
FRONT_CONF = Path(__file__).parents[2] / "deploy" / "nginx" / "superlink.conf"
S3_FRONT = """
    server {
        listen 127.0.0.1:9443 ssl;
        ssl_certificate %(keys)s/superlink.crt;
        ssl_certificate_key %(keys)s/superlink.key;
        location / {
            proxy_pass http://127.0.0.1:9000;
            proxy_set_header Host 127.0.0.1:9000;  # moto would take a name for a bucket's
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_buffering off;
            client_max_body_size 0;
        }
    }
}
"""
CURTAIL = (sys.executable, "-m", "curtail_pipeline.cli")
INSIDE = (sys.executable, "-m", "curtail_pipeline.benchmarks.wan_inside")


def run(
    model: str = "d4",
    mbit_s: float = 100.0,
    rtt_ms: float = 150.0,
    logs: str | None = None,
    arms: str = "fp32",
    linked: str = JOINS,
) -> Mapping[str, Json]:
    """Figures of the first arm as in the module's text, and the main ones of all of them below `arms`; below
    `projected_561M_600s` what share of a round each would not train with 561 M parameters.

    Args:
        model: `d4` or `tiny`.
        mbit_s: of a site's line, each way.
        rtt_ms: its round trip.
        logs: folder to keep logs in.
        arms: codecs of what sites send, with `+overlap`, `+fragments` (a quarter of the weights each round) or both,
            separated by commas; each is a run of its own, one after the other.
        linked: sites without credentials of the bucket, whose orders bring addresses, separated by commas. What the
            others do not send by a codec, their optimiser states and what updates leave out, goes to the bucket too.

    Raises:
        SettingsError: this machine cannot have namespaces, or there is no such model, line, codec or site.
        FederationError: a part did not start, or the run failed; the message ends with its log.
    """
    if model not in MODELS:
        raise SettingsError(f"no model {model!r} here; there are {', '.join(MODELS)}")
    if not (0 < mbit_s < math.inf and 0 <= rtt_ms < math.inf):
        raise SettingsError(f"--mbit-s {mbit_s} and --rtt-ms {rtt_ms} are no line; give numbers such as 100 and 150")
    asked, by_addresses = arms_of(arms), linked_of(linked)
    if reason := _why_not(model):
        raise SettingsError(f"`curtail bench wan` cannot run here: {reason}")
    projected, found = _projected(asked, MEASURED[model]), dict[str, Mapping[str, Json]]()
    for arm in asked:
        with held_folder(Path(tempfile.gettempdir()), "curtail-wan-") as folder, _spaces(model) as made:
            place = Path(logs or folder) / arm.name
            place.mkdir(parents=True, exist_ok=True)
            hub, sites = made[0], dict(zip(CURTAILED, made[1:], strict=True))
            content = experiment(model, arm, by_addresses, TRACE)
            found[arm.name] = {
                "model": model,
                "inner_state": "own",
                **_Network(place, hub, sites, content, by_addresses, mbit_s, rtt_ms).measure(),
            }
        print(f"{arm.name}: {json.dumps(arm_of(found[arm.name]))}", file=sys.stderr)  # should a later one fail
    return {
        **found[asked[0].name],
        "arms": {name: arm_of(measured) for name, measured in found.items()},
        "projected_561M_600s": projected,
    }


def _projected(arms: Sequence[Arm], model: str) -> dict[str, Json]:
    """By arm, the share of a round of 600 s over 100 Mbit/s that a site of 561 M parameters does not train: from bytes
    and processor seconds of an exchange of this model, measured here (`bench_exchange`)."""
    names: set[CodecName] = {"fp32"}
    for arm in arms:
        names |= {arm.codec, DOWN.get(arm.codec, arm.codec)}
    found = measure(model, sorted(names), fragments=PARTS if any(arm.fragments for arm in arms) else 1)
    whole, parts = found["projected_561M_600s"], found["fragments"]
    shares = {arm: (parts if arm.fragments else whole)[arm.codec] for arm in arms}
    return {arm.name: share["overlapped" if arm.overlap else "waiting"] for arm, share in shares.items()}


def _spaces(model: str) -> contextlib.AbstractContextManager[list[Space]]:
    return spaces("hub", *CURTAILED, disk_gib=DISK_GIB.get(model))


def _why_not(model: str) -> str | None:
    if reason := why_not("nginx", *([MAKES_DISKS] if model in DISK_GIB else [])):
        return reason
    missing = [name for name in ("moto", "flask", "flask_cors") if find_spec(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed; pip install 'curtail_pipeline[bench]'"
    return None if FRONT_CONF.is_file() else f"{FRONT_CONF} is not there; run it from a checkout"


@dataclass
class _Seen:
    """Lines that a program inside a space printed."""

    lines: list[Line] = field(default_factory=list)

    def follow(self, process: "subprocess.Popen[str]", copy: Path) -> threading.Thread:
        def read() -> None:
            assert process.stdout is not None
            with process.stdout as stream, copy.open("w") as kept:
                for text in stream:
                    kept.write(text)
                    kept.flush()
                    with contextlib.suppress(MessageError):
                        self.lines.append(read_record(Line, json.loads(text), str(copy)))

        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        return thread

    def has(self, event: str) -> bool:
        return any(line.event == event for line in self.lines)


class _Network:
    """The spaces, linked and furnished."""

    def __init__(
        self,
        logs: Path,
        hub: Space,
        sites: Mapping[str, Space],
        experiment: Mapping[str, Json],
        linked: Collection[str],
        mbit_s: float,
        rtt_ms: float,
    ) -> None:
        self.logs, self.hub, self.sites, self.experiment = logs, hub, sites, experiment
        self.linked, self.mbit_s, self.rtt_ms = linked, mbit_s, rtt_ms
        self.address: dict[str, str] = {}
        """By which a site reaches the hub."""
        self.nodes: dict[str, int] = {}
        self.events, self.watched = _Seen(), {name: _Seen() for name in sites}

    def measure(self) -> Mapping[str, Json]:
        for host in (FRONT_HOST, S3_HOST):
            self.hub.knows(host, "127.0.0.1")
        for number, (name, site) in enumerate(self.sites.items(), 1):
            self.address[name], _ = link(self.hub, site, number, self.mbit_s)
            for host in (FRONT_HOST, S3_HOST):
                site.knows(host, self.address[name])
        self._furnish_hub()
        for name in self.sites:
            self._admit(name)
        job = self.hub.listen([*INSIDE, "run", f"{WORK}/wan.yaml", STORE], self.logs / "run.log", self._at_hub())
        reading = self.events.follow(job, self.logs / "run.jsonl")
        for name in self.sites:
            if name != JOINS:
                self._start_site_once_there_is_a_store(name, job)
        self._wait_for_event("Submitted", job)  # a provisioner, too, starts a site before its window
        began = self._start_site(JOINS)
        self._wait(lambda: any(line.pid for line in self.watched[JOINS].lines), "its trainer", f"site-{JOINS}")
        started = time.time() - began
        refused, trainers = self._refused(), self._trainers()
        common = common_paths({"hub": self.hub.pid, **trainers})
        try:
            code: int | None = job.wait(RUN_S)
        except subprocess.TimeoutExpired:
            code = None
        if code != 0:
            raise FederationError(f"the run ended with {code}:\n{_tail(self.logs / 'run.log')}")
        reading.join(10)
        found = figures(self.events.lines, {name: seen.lines for name, seen in self.watched.items()}, JOINS)
        moved, site_rounds = self._bytes(), found["site_rounds"]
        assert isinstance(site_rounds, int)
        return {
            "sites": len(trainers),
            "common_paths": len(common),
            "bytes_per_site_round": round(sum(moved.values()) / site_rounds),
            **found,
            "site_ready_s": round(started, 2),
            "tls": True,
            "authenticated": self._joined_by_key(),
            "refused": dict(refused),
            "bytes": dict(moved),
            "pauses": sum(line.event == "Paused" for line in self.events.lines),
            "memberships": [sorted(line.members) for line in self.events.lines if line.event == "SegmentPlanned"],
            "common": [*common],
            "read_only_software": [*software_paths({"hub": self.hub.pid, **trainers})],
            "line": f"{self.mbit_s:g} Mbit/s each way by tc tbf, {self.rtt_ms:g} ms round trip by a relay",
            "load": os.getloadavg()[0],
        }

    # The parts

    def _furnish_hub(self) -> None:
        hub = self.hub
        hub.run([*CURTAIL, "deploy", "keys", "keys", "--host", FRONT_HOST, "--host", S3_HOST])
        hub.write(TRACE, trace())
        hub.write(f"{WORK}/wan.yaml", yaml.safe_dump(self.experiment))
        conf = FRONT_CONF.read_text(encoding="utf-8").replace("/keys/", f"{WORK}/keys/").replace("/run/", f"{WORK}/")
        conf = conf.replace("listen 8443", f"listen 127.0.0.1:{FRONT_PORT}")
        hub.write(f"{WORK}/nginx.conf", conf.rstrip().removesuffix("}") + S3_FRONT % {"keys": f"{WORK}/keys"})
        hub.start(["sh", "-c", f"sleep infinity | {sys.executable} -m curtail_pipeline.benchmarks.moto_server 9000"],
                  self.logs / "s3.log")  # fmt: skip
        hub.start([*CURTAIL, "superlink", "--keys", "keys"], self.logs / "superlink.log", self._at_hub())
        nginx = program("nginx")
        assert nginx is not None
        hub.run(["mkdir", "-p", "/var/lib/nginx", "/var/log/nginx", "/run"])
        hub.start([nginx, "-p", WORK, "-c", f"{WORK}/nginx.conf", "-g", "daemon off;"], self.logs / "nginx.log")
        routes = [f"{address}:{port}=127.0.0.1:{port}" for address in self.address.values()
                  for port in (FRONT_PORT, S3_PORT)]  # fmt: skip
        delay = ["--delay-ms", f"{self.rtt_ms / 2:g}"]
        hub.start([sys.executable, "-m", "curtail_pipeline.benchmarks.delay_relay", *delay, *routes],
                  self.logs / "relay.log")  # fmt: skip
        ports = (8000, 9000, FRONT_PORT, S3_PORT)
        look = f"import socket, sys; sys.exit(any(socket.socket().connect_ex(('127.0.0.1', p)) for p in {ports}))"
        self._wait(lambda: _true(hub, [sys.executable, "-c", look]), "the hub's servers", "superlink")
        make = f"import boto3; boto3.client('s3').create_bucket(Bucket={BUCKET!r})"
        hub.run([sys.executable, "-c", make], self._at_hub())

    def _admit(self, name: str) -> None:
        """A key pair made at the site; its public half is registered, the authority's certificate brought."""
        site, hub = self.sites[name], self.hub
        make = "from pathlib import Path; from curtail_pipeline.flower import keys; keys.public_key_of(Path('key'))"
        site.run([sys.executable, "-c", make])
        site.write(f"{WORK}/ca.crt", hub.read("keys/ca.crt"))
        hub.write(f"{WORK}/sites/{name}.pub", site.read("key.pub"))
        said = hub.run([*CURTAIL, "site", "register", name, "--key", f"sites/{name}", "--superlink", "127.0.0.1:8000",
                        "--ca", "keys/ca.crt"])  # fmt: skip
        self.nodes[name] = int(said.split("as node ")[1].split(",")[0])

    def _start_site(self, name: str) -> float:
        site, front = self.sites[name], f"{FRONT_HOST}:{FRONT_PORT}"
        environment = _at(f"{WORK}/ca.crt")
        if linked := name in self.linked:
            environment = {name: value for name, value in environment.items() if not name.startswith("AWS_")}
        words = ["site", "run", name, "--superlink", front, "--ca", "ca.crt", "--key", "key"]
        words += ["--linked"] if linked else ["--store", STORE]
        began = time.time()
        site.start([*CURTAIL, *words], self.logs / f"site-{name}.log", environment)
        watch = [*INSIDE, "watch", f"{WORK}/homes/sites/{name}/trainers/{name}.json"]
        log = self.logs / f"watch-{name}.log"
        self.watched[name].follow(site.listen(watch, log), log.with_suffix(".jsonl"))
        return began

    def _refused(self) -> dict[str, Json]:
        """From `east`, which is admitted: what it must not be able to do."""
        front, own, other = f"{FRONT_HOST}:{FRONT_PORT}", self.nodes[JOINS], self.nodes["north"]
        words = [*INSIDE, "refusals", JOINS, front, "ca.crt", "key", str(own), str(other)]
        return dict(json.loads(self.sites[JOINS].run(words).splitlines()[-1]))

    def _joined_by_key(self) -> bool:
        """Whether every SuperNode is the node that its registered key stands for."""
        return all(
            f"SuperNode ID: {node}" in (self.logs / f"site-{name}.log").read_text() for name, node in self.nodes.items()
        )

    def _at_hub(self) -> dict[str, str]:
        authority = f"{WORK}/keys/ca.crt"
        return {**_at(authority), "CURTAIL_SUPERLINK": "127.0.0.1:8000", "CURTAIL_CA": authority}

    def _trainers(self) -> dict[str, int]:
        """The process of each site's trainer, found by its command line in the site's own mount namespace."""
        where = {Path(f"/proc/{site.pid}/ns/mnt").readlink(): name for name, site in self.sites.items()}
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                name = where.get(Path(f"/proc/{process.pid}/ns/mnt").readlink())
                if name is not None and "curtail_pipeline.training.serve" in process.cmdline():
                    found[name] = process.pid
        return found

    # Waiting and counting

    def _start_site_once_there_is_a_store(self, name: str, job: "subprocess.Popen[str]") -> None:
        self._wait_for_event("Preparing", job)
        self._start_site(name)

    def _wait_for_event(self, event: str, job: "subprocess.Popen[str]") -> None:
        self._wait(lambda: self.events.has(event) or job.poll() is not None, f"{event} of the run", "run", RUN_S)
        if job.poll() is not None:
            raise FederationError(f"the run ended before {event}:\n{_tail(self.logs / 'run.log')}")

    def _wait(self, condition: Callable[[], bool], what: str, log: str, seconds: float = READY_S) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise FederationError(f"waited {seconds:.0f} s for {what}:\n{_tail(self.logs / f'{log}.log')}")
            time.sleep(0.2)

    def _bytes(self) -> dict[str, int]:
        """What has passed each site's line, both ways."""
        counted = {}
        for number, name in enumerate(self.sites, 1):
            found = json.loads(self.hub.run(["ip", "-s", "-j", "link", "show", "dev", f"site{number}"]))[0]["stats64"]
            counted[name] = found["rx"]["bytes"] + found["tx"]["bytes"]
        return counted


def _at(authority: str) -> dict[str, str]:
    """The environment of who has credentials of the bucket."""
    return {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"https://{S3_HOST}:{S3_PORT}", "AWS_CA_BUNDLE": authority, "SSL_CERT_FILE": authority,
        "CURTAIL_CACHE": f"{WORK}/cache", "CURTAIL_HOME": f"{WORK}/homes",
    }  # fmt: skip


def _true(space: Space, words: list[str]) -> bool:
    try:
        space.run(words)
    except SettingsError:
        return False
    return True


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-25:]) if path.exists() else "(no log)"
