"""A deployment without Docker: the services of a compose file as processes, each with its image's files and mounts.

    unshare --mount --net --pid --fork --kill-child --mount-proc python rehearsal.py compose.yaml FOLDER   (as root)

All services share one network of their own, where each is found by its name. What comes from elsewhere has a stand-in:
Postgres and nginx are this machine's, the store is moto's server. It ends with what it saw, as JSON on the last line.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
import yaml
from container import Bound, Spec
from image_layout import PACKAGES, lay_out, read_dockerfile

CHECKOUT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("container.py")
POSTGRES = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/nowhere"))
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin") or ""
START_S = 120.0

DATABASE = f"""
set -e
test -s $PGDATA/PG_VERSION || {POSTGRES}/initdb --auth=scram-sha-256 --pwfile=$POSTGRES_PASSWORD_FILE \
    --username=$POSTGRES_USER --encoding=UTF8 --no-sync >/dev/null
test -e $PGDATA/made || {{
    echo "CREATE DATABASE $POSTGRES_DB" | {POSTGRES}/postgres --single postgres >/dev/null 2>&1 || true
    touch $PGDATA/made
}}
exec {POSTGRES}/postgres -c listen_addresses=0.0.0.0 -c unix_socket_directories=/tmp -c fsync=off
"""
STORE = """
import signal
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
ThreadedMotoServer(ip_address="0.0.0.0", port=9000, verbose=False).start()
signal.pause()
"""


@dataclass
class Service:
    name: str
    spec: Spec
    healthcheck: list[str] = field(default_factory=list)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def log(self) -> Path:
        return Path(self.spec["log"])

    @property
    def inner(self) -> int:
        """Process id of the first process in there, once it is there."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        deadline = time.monotonic() + 30
        while not (found := children.read_text().split()):
            assert time.monotonic() < deadline and self.ended() is None, f"{self.name} did not start:\n{self.tail()}"
            time.sleep(0.02)
        return int(found[0])

    def start(self) -> None:
        spec = self.log.with_suffix(".json")
        spec.write_text(json.dumps(self.spec))
        command = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child=SIGKILL",
            sys.executable,
            str(PROGRAM),
            str(spec),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def inside(self, *command: str, timeout: float = 60) -> "subprocess.CompletedProcess[str]":
        """Run a command in there, as `docker compose exec` does."""
        enter = [
            "nsenter",
            "-t",
            str(self.inner),
            "-m",
            "-p",
            "-r",
            "-w",
            "-S",
            str(self.spec["uid"]),
            "-G",
            str(self.spec["uid"]),
        ]
        return subprocess.run(
            [*enter, "--", "/usr/bin/env", "-i", *[f"{k}={v}" for k, v in self.spec["environment"].items()], *command],
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def ended(self) -> int | None:
        return self.process.poll() if self.process is not None else None

    def healthy(self) -> bool:
        return bool(self.healthcheck) and self.ended() is None and self.inside(*self.healthcheck).returncode == 0

    def tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])


class Rehearsal:
    """The services of a compose file in a folder, which has to be empty."""

    def __init__(self, compose: Path, folder: Path) -> None:
        self.folder, self.beside = folder, compose.resolve().parent
        self.content: dict[str, Any] = yaml.safe_load(compose.read_text())
        self._client: Any = None
        self.stages = read_dockerfile(CHECKOUT / "Dockerfile")
        for name in ("logs", "volumes", "roots", "configs"):
            (folder / name).mkdir()
        hosts = "".join(f"127.0.0.1 {name}\n" for name in ("localhost", *self.content["services"]))
        users = "root:x:0:0::/root:/bin/sh\ncurtail:x:10001:10001::/home/curtail:/bin/sh\n"
        users += (
            "postgres:x:999:999::/tmp:/bin/sh\nnobody:x:65534:65534::/tmp:/bin/sh\nwww-data:x:33:33::/tmp:/bin/sh\n"
        )
        groups = "root:x:0:\ncurtail:x:10001:\npostgres:x:999:\nwww-data:x:33:\nnogroup:x:65534:\n"
        self.etc = {
            "/etc/hosts": hosts,
            "/etc/passwd": users,
            "/etc/group": groups,
            "/etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
        }
        for target in sorted({each["image"].partition(":")[2] for each in self._own().values()}):
            lay_out(folder / "images" / target, CHECKOUT, self.stages[target], self.stages)
        self.services = {name: self._service(name, each) for name, each in self.content["services"].items()}

    def _own(self) -> dict[str, Any]:
        return {
            name: each
            for name, each in self.content["services"].items()
            if each["image"].startswith("curtail_pipeline:")
        }

    def _service(self, name: str, said: dict[str, Any]) -> Service:
        root = self.folder / "roots" / name
        root.mkdir()
        spec = Spec(
            root=str(root),
            bound=[],
            files=dict(self.etc),
            environment={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/tmp", **said.get("environment", {})},
            workdir="/",
            uid=0,
            command=list(said.get("command", [])),
            log=str(self.folder / "logs" / f"{name}.log"),
        )
        spec["environment"] = {key: str(value) for key, value in spec["environment"].items()}
        base = Path(sys.base_prefix)
        packages = next(Path(path) for path in sys.path if path.endswith("site-packages"))
        python = [Bound(source=str(base), target=str(base), read_only=True)]
        python.append(Bound(source=str(packages), target=PACKAGES, read_only=True))
        image = said["image"]
        if image.startswith("curtail_pipeline:"):
            found = self._image(spec, image.partition(":")[2], said, python)
        elif image.startswith("postgres:"):
            spec["uid"], spec["command"] = 999, ["/bin/sh", "-c", DATABASE]
            spec["environment"]["PGDATA"] = "/var/lib/postgresql/data"
            found = Service(name, spec, [f"{POSTGRES}/pg_isready", "-h", "127.0.0.1", "-U", "dagster", "-q"])
        elif image.startswith("minio/"):
            spec["bound"] += python
            spec["environment"]["PYTHONPATH"] = PACKAGES
            program = f"{base}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
            spec["command"] = [program, "-W", "ignore", "-c", STORE]
            found = Service(name, spec, [program, "-c", "import socket; socket.create_connection(('127.0.0.1', 9000))"])
        else:
            assert image.startswith("nginx:"), image
            spec["command"] = [NGINX, "-g", "daemon off;", "-c", "/etc/nginx/nginx.conf"]
            spec["bound"].append(Bound(source="/usr/share/nginx", target="/usr/share/nginx", read_only=True))
            (root / "var/lib/nginx").mkdir(parents=True)
            (root / "var/log/nginx").mkdir(parents=True)
            found = Service(name, spec)
        self._mounts(spec, said)
        return found

    def _image(self, spec: Spec, target: str, said: dict[str, Any], python: list[Bound]) -> Service:
        stage, files = self.stages[target], self.folder / "images" / target
        uid = stage.uid if stage.user else 0
        path = stage.environment["PATH"].replace("$PATH", spec["environment"]["PATH"])
        spec["environment"] = {
            **spec["environment"],
            **stage.environment,
            "PATH": path,
            **{key: str(value) for key, value in said.get("environment", {}).items()},
            "HOME": f"/home/{stage.user}",
        }
        spec["bound"] += python
        for place in (stage.workdir, "/opt/venv"):
            spec["bound"].append(Bound(source=f"{files}{place}", target=place, read_only=False))
        for place in (*stage.folders, spec["environment"]["HOME"]):
            owned = Path(spec["root"], place.lstrip("/"))
            owned.mkdir(parents=True)
            os.chown(owned, uid, uid)
        spec["uid"], spec["workdir"] = uid, stage.workdir
        return Service(Path(spec["root"]).name, spec, ["curtail", "health"])

    def _mounts(self, spec: Spec, said: dict[str, Any]) -> None:
        for volume in said.get("volumes", []):
            if isinstance(volume, dict):
                spec["bound"].append(Bound(source=volume["source"], target=volume["target"], read_only=True))
                continue
            name, target = volume.split(":")
            assert name in self.content["volumes"], volume
            source = self.folder / "volumes" / name
            source.mkdir()  # one service each
            os.chown(source, spec["uid"], spec["uid"])
            spec["bound"].append(Bound(source=str(source), target=target, read_only=False))
        for secret in said.get("secrets", []):
            named = secret if isinstance(secret, dict) else {"source": secret, "target": secret}
            file = self.beside / self.content["secrets"][named["source"]]["file"]
            spec["bound"].append(Bound(source=str(file), target=f"/run/secrets/{named['target']}", read_only=True))
        for config in said.get("configs", []):
            found = self.content["configs"][config["source"]]
            if "file" in found:
                source = self.beside / found["file"]
            else:
                source = self.folder / "configs" / config["source"]
                source.write_text(found["content"].replace("$$", "$"))
            spec["bound"].append(Bound(source=str(source), target=config["target"], read_only=True))

    def up(self) -> None:
        """Start every service once what it depends on is there; again where that is its restart policy."""
        deadline = time.monotonic() + START_S
        waiting = {
            name: each for name, each in self.services.items() if not self.content["services"][name].get("profiles")
        }
        while waiting:
            assert time.monotonic() < deadline, f"never started: {', '.join(waiting)}\n{self.logs()}"
            for name in list(waiting):
                if all(
                    self._is(on, wanted) for on, wanted in self.content["services"][name].get("depends_on", {}).items()
                ):
                    waiting.pop(name).start()
            time.sleep(1.0)

    def _is(self, name: str, wanted: dict[str, str]) -> bool:
        service, condition = self.services[name], wanted["condition"]
        if service.process is None:
            return False
        if condition == "service_healthy":
            return service.healthy()
        if condition == "service_completed_successfully":
            assert service.ended() in (None, 0), f"{name} failed:\n{service.tail()}"
            return service.ended() == 0
        return condition == "service_started"

    def ended(self) -> list[str]:
        """Services that should run and do not."""
        once = {"on-failure"}
        policies = {name: self.content["services"][name].get("restart") for name in self.services}
        return [n for n, each in self.services.items() if each.ended() is not None and policies[n] not in once]

    def wait(self, what: str, condition: Callable[[], Any], deadline_s: float) -> Any:
        deadline = time.monotonic() + deadline_s
        while not (found := condition()):
            gone = self.ended()
            assert not gone, f"{', '.join(gone)} ended while waiting for {what}:\n{self.logs(gone)}"
            assert time.monotonic() < deadline, f"waited {deadline_s:g} s in vain for {what}:\n{self.logs()}"
            time.sleep(0.5)
        return found

    def logs(self, names: list[str] | None = None) -> str:
        shown = [self.services[name] for name in names or self.services if self.services[name].log.exists()]
        return "\n".join(f"--- {each.name}\n{each.tail()}" for each in shown)

    # What it came to

    def objects(self, part: str) -> dict[str, Any]:
        """JSON objects of the store below that part of it, by key."""
        store = self.content["services"]["code"]["environment"]["CURTAIL_STORE"]
        bucket, _, prefix = store.removeprefix("s3://").partition("/")
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
        if self._client is None:
            self._client = boto3.session.Session().client("s3", endpoint_url="http://127.0.0.1:9000", **keys)
        listed = self._client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/{part}").get("Contents", [])
        names = sorted(each["Key"] for each in listed if each["Key"].endswith(".json"))
        return {name: json.loads(self._client.get_object(Bucket=bucket, Key=name)["Body"].read()) for name in names}

    def federated(self) -> dict[str, Any] | None:
        """The manifest of the first federated checkpoint."""
        found = self.objects("checkpoints/")
        manifests = [each for name, each in found.items() if name.endswith("/manifest.json")]
        return next((each for each in manifests if each["mode"] == "federated"), None)

    def busy(self) -> list[str]:
        """Sites that work on an order, by their signs of life."""
        return [each["site"] for each in self.objects("agents/").values() if each["busy"]]

    def asked(self, query: str, **variables: Any) -> Any:
        """Dagster's GraphQL, of the webserver."""
        answer = httpx.post(
            "http://127.0.0.1:3000/graphql", json={"query": query, "variables": variables}, timeout=30, trust_env=False
        )
        return answer.json()["data"]

    def training(self) -> str | None:
        """The run of a segment whose sites train now."""
        if not self.busy():
            return None
        wanted = '{statuses: [STARTED], pipelineName: "federated_rounds"}'
        query = f"{{runsOrError(filter: {wanted}) {{... on Runs {{results {{id}}}}}}}}"
        runs = self.asked(query)["runsOrError"]["results"]
        return str(runs[0]["id"]) if runs else None


CANCEL = "mutation($id: String!) {terminateRun(runId: $id) {__typename ... on TerminateRunSuccess {run {status}}}}"


def rehearse(compose: Path, folder: Path) -> dict[str, Any]:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    began, rehearsal = time.monotonic(), Rehearsal(compose, folder)
    rehearsal.up()
    up_s = time.monotonic() - began

    found = rehearsal.wait("a federated checkpoint", rehearsal.federated, 400)
    trained_s = time.monotonic() - began
    run = rehearsal.wait("a federated segment that trains", rehearsal.training, 240)
    stopped = time.monotonic()
    answer = rehearsal.asked(CANCEL, id=run)["terminateRun"]["__typename"]
    rehearsal.wait("idle sites", lambda: not rehearsal.busy(), 60)
    cancel_s = time.monotonic() - stopped
    code, control = rehearsal.services, [n for n, e in rehearsal._own().items() if e["image"].endswith(":control")]
    lasting = [name for name in control if code[name].ended() is None]
    torch = {name: code[name].inside("python", "-c", "import torch").returncode == 0 for name in lasting}
    users = {
        name: re.search(r"^Uid:\s+(\d+)", code[name].inside("cat", "/proc/self/status").stdout, re.M)[1]  # type: ignore[index]
        for name in rehearsal._own()
        if code[name].ended() is None
    }
    secret = (rehearsal.beside / "secrets/postgres_password").read_text()
    signed = [name for name in rehearsal.services if name != "store" and "X-Amz-" in code[name].log.read_text()]
    leaked = [name for name, each in rehearsal.services.items() if secret in json.dumps(each.spec["environment"])]
    return {
        "checkpoint": found["key"],
        "members": found["members"],
        "services": sorted(rehearsal.services),
        "up_s": round(up_s, 1),
        "federated_s": round(trained_s, 1),
        "cancelled": answer,
        "cancel_s": round(cancel_s, 1),
        "control_with_torch": [name for name, has in torch.items() if has],
        "control_without_torch": [name for name, has in torch.items() if not has],
        "users": sorted(set(users.values())),
        "environments_with_the_password": leaked,
        "logs_with_addresses": signed,
    }


if __name__ == "__main__":
    try:
        print(json.dumps(rehearse(Path(sys.argv[1]), Path(sys.argv[2]))), flush=True)
    except AssertionError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
