"""Where runs are disturbed: a local federation, a standing SuperLink with sites that join it, a store in a bucket."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path

import psutil

from curtail_pipeline.benchmarks import s3_server
from curtail_pipeline.benchmarks.relay import Relay, wait_until_listens
from curtail_pipeline.benchmarks.shifted_clock import ShiftedClock
from curtail_pipeline.flower.hangs import healthy
from curtail_pipeline.flower.local import Federation
from curtail_pipeline.flower.processes import NAME_LENGTH, die_with_parent, free_port, is_alive
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.s3_calls import Place
from curtail_pipeline.storage.s3_store import S3Store
from curtail_pipeline.storage.store import Store

CLI = (sys.executable, "-m", "curtail_pipeline.cli")
START_AGAIN_S = 1.0
HEALTH_S, UNHEALTHY = 2.0, 5
"""A container platform's probe: so many seconds apart, and so many failures in a row until it ends what is probed."""


class Part(StrEnum):
    """A process of a federation."""

    TRAINER = "trainer"
    SUPERNODE = "supernode"
    SITE_SUPEREXEC = "superexec of a supernode"
    CLIENTAPP = "clientapp"
    SUPERLINK = "superlink"
    SUPEREXEC = "superexec of the superlink"
    SERVERAPP = "serverapp"
    SUPERVISOR = "supervisor"
    """Of a local federation; of a standing one the process that runs a site."""


class Setup(ABC):
    """What an experiment runs on.

    Args:
        folder: for everything, the home in `homes/` of it.
        experiment: its file.
        sites: their names.
    """

    def __init__(self, folder: Path, experiment: Path, name: str, sites: Sequence[str]) -> None:
        self.folder, self.experiment, self.sites = folder, experiment, sites
        self.homes = folder / "homes"
        self.home = self.homes / name
        self.federation = Federation(self.home / "federation")
        self.clock = ShiftedClock(folder)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("CURTAIL_", "DAGSTER_"))}
        self.environment = {**clean, **self.clock.environment, "CURTAIL_HOME": str(self.homes)}
        self.environment |= self._store_environment()
        self.store = self._open_store()

    def _open_store(self) -> Store:
        return FolderStore(self.home / "store")

    def _store_environment(self) -> Mapping[str, str]:
        """What processes need to reach the store."""
        return {}

    def place_words(self) -> tuple[str, ...]:
        """Options of commands: which experiment, and where."""
        return ("--experiment", str(self.experiment), "--out", str(self.home))

    def words(self) -> tuple[str, ...]:
        """Of the command that runs the experiment."""
        return ("run", *self.place_words())

    def launch(self, words: Sequence[str], log: Path) -> "subprocess.Popen[bytes]":
        with log.open("ab") as output:
            return subprocess.Popen(
                [*CLI, *words], env=self.environment, stdout=output, stderr=output, preexec_fn=die_with_parent
            )

    @abstractmethod
    def ready(self) -> bool:
        """Whether every part is there."""

    @abstractmethod
    def pid(self, site: str, part: Part) -> int | None:
        """The process, where there is one now."""

    def roots(self) -> list[int]:
        """Processes besides the command below which all others are."""
        return []

    def damage(self, key: str) -> None:
        """Flip a bit of an object."""
        path = self.store.here(key)
        with path.open("r+b") as stream:
            stream.seek(-1, os.SEEK_END)
            last = stream.read(1)[0]
            stream.seek(-1, os.SEEK_END)
            stream.write(bytes([last ^ 1]))

    def close(self) -> None:  # noqa: B027 - of most set-ups nothing is left when the command has ended
        """End what was started here."""


class Local(Setup):
    """One command that starts all the rest."""

    def ready(self) -> bool:
        state = self.federation.state()
        parts = [part.ready for site in state.sites.values() for part in (site.trainer, site.supernode)]
        return state.state == "ready" and state.superlink.ready and all(parts)

    def pid(self, site: str, part: Part) -> int | None:
        state = self.federation.state()
        processes = state.sites.get(site)
        node, link = processes.supernode.pid if processes else None, state.superlink.pid

        def spawned(command: str, owner: int | None) -> int | None:
            found = [p.pid for p in state.spawned if p.command == command and (owner is None or p.owner == owner)]
            return found[-1] if found else None

        return {
            Part.TRAINER: processes.trainer.pid if processes else None,
            Part.SUPERNODE: node,
            Part.SITE_SUPEREXEC: spawned("flower-superexec", node) if node else None,
            Part.CLIENTAPP: spawned("flwr-clientapp", None),
            Part.SUPERLINK: link,
            Part.SUPEREXEC: spawned("flower-superexec", link) if link else None,
            Part.SERVERAPP: spawned("flwr-serverapp", None),
            Part.SUPERVISOR: state.pid or None,
        }[part]


class _InBucket(Setup):
    """The store in a bucket behind a front that fails on demand."""

    def __init__(self, folder: Path, experiment: Path, name: str, sites: Sequence[str]) -> None:
        self.server = s3_server.start()
        self.front = s3_server.Front(self.server)
        self.place = Place(self.server.bucket(), f"runs/{name}")
        super().__init__(folder, experiment, name, sites)

    def _store_environment(self) -> Mapping[str, str]:
        return {
            **s3_server.KEYS, "AWS_ENDPOINT_URL": self.front.url, "CURTAIL_CACHE": str(self.folder / "cache"),
        }  # fmt: skip

    def _open_store(self) -> Store:
        return S3Store(self.place, self.folder / "look", 1 << 28, self.server.connect)

    def place_words(self) -> tuple[str, ...]:
        return ("--experiment", str(self.experiment), "--out", self.place.uri)

    def damage(self, key: str) -> None:
        client, name = self.server.connect(), f"{self.place.prefix}/{key}"
        found = client.get_object(Bucket=self.place.bucket, Key=name)
        data = found["Body"].read()
        body = data[:-1] + bytes([data[-1] ^ 1])
        client.put_object(Bucket=self.place.bucket, Key=name, Body=body, Metadata=found["Metadata"])

    def close(self) -> None:
        super().close()
        self.front.close()
        self.server.stop()


class Bucket(_InBucket, Local):
    """As `Local`, the store in a bucket."""


_WORDS = {
    Part.TRAINER: "curtail_pipeline.training.serve",
    Part.SUPERNODE: "supernode",
    Part.SITE_SUPEREXEC: "flower-superexec",
    Part.CLIENTAPP: "flwr-clientapp",
    Part.SUPERLINK: "flower-superlink",
    Part.SUPEREXEC: "flower-superexec",
    Part.SERVERAPP: "flwr-serverapp",
}
"""By which a process is known."""
ASKS = "spawn.py"
"""In the command line of what only asks for a fork (`spawn_shims`)."""
_OF_SUPERLINK = (Part.SUPERLINK, Part.SUPEREXEC, Part.SERVERAPP)


class Standing(Setup):
    """A SuperLink and sites that stand by themselves, each started again when it ends, as a container platform does."""

    def __init__(self, folder: Path, experiment: Path, name: str, sites: Sequence[str]) -> None:
        super().__init__(folder, experiment, name, sites)
        self.superlink = f"127.0.0.1:{free_port()}"
        self.lines = {site: Relay(self.superlink) for site in sites}
        """Between each site and the SuperLink."""
        self.environment["CURTAIL_SUPERLINK"] = self.superlink
        self._over, self._closing = threading.Event(), False
        self._walked: dict[int, tuple[float, list[tuple[int, str, str]]]] = {}
        port = self.superlink.split(":")[1]
        link = ("superlink", "--port", port, "--folder", str(folder / "superlink"))
        self._kept: dict[str, subprocess.Popen[bytes]] = {"": self.launch(link, folder / "superlink.log")}
        wait_until_listens(self.superlink, 120)
        self._words: dict[str, tuple[str, ...]] = {"": link}
        for site, line in self.lines.items():
            self._words[site] = (
                "site", "run", site, "--superlink", line.address, *self.place_words(),
            )  # fmt: skip
            self._kept[site] = self.launch(self._words[site], folder / f"{site}.log")
        # in a thread that lasts: children die with the thread that started them
        self._keeper = threading.Thread(target=self._keep, name="keeper", daemon=True)
        self._keeper.start()

    def _keep(self) -> None:
        unwell, looked = 0, 0.0
        while not self._over.wait(0.2):
            if self._closing:
                continue
            for name, process in self._kept.items():
                if process.poll() is not None:
                    time.sleep(START_AGAIN_S)
                    log = self.folder / (f"{name}.log" if name else "superlink.log")
                    self._kept[name] = self.launch(self._words[name], log)
            if time.monotonic() - looked > HEALTH_S:
                unwell, looked = (0 if healthy(self.superlink, 1.0) else unwell + 1), time.monotonic()
            if unwell >= UNHEALTHY:
                unwell = -UNHEALTHY  # time to start
                self._kept[""].kill()

    def ready(self) -> bool:
        return (
            healthy(self.superlink, 1.0)
            and all(self.pid(site, part) for site in self.sites for part in (Part.SUPERNODE, Part.SITE_SUPEREXEC))
            and all(self.federation.endpoint(site).exists() for site in self.sites)
        )

    def pid(self, site: str, part: Part) -> int | None:
        root = self._kept["" if part in _OF_SUPERLINK else site].pid
        if part is Part.SUPERVISOR:
            return root if is_alive(root) else None
        found = [
            pid for pid, name, words in _below(root) if name == _WORDS[part][:NAME_LENGTH] or _WORDS[part] in words
        ]
        return found[0] if found else None

    def roots(self) -> list[int]:
        return [process.pid for process in self._kept.values()]

    def close(self) -> None:
        self._closing = True
        for line in self.lines.values():
            line.set("whole")
        for process in self._kept.values():
            process.terminate()
        for process in self._kept.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            process.kill()
            process.wait()
        self._over.set()
        self._keeper.join()
        for line in self.lines.values():
            line.close()


def _below(root: int) -> Iterator[tuple[int, str, str]]:
    """Processes below one, with their names, which forked ones have of their own, and their command lines."""
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(root).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                words = " ".join(process.cmdline())
                if process.status() != psutil.STATUS_ZOMBIE and ASKS not in words:
                    yield process.pid, process.name(), words


class Remote(_InBucket, Standing):
    """As `Standing`, the store in a bucket: sites share nothing with whoever runs segments but both servers."""


SETUPS: Mapping[str, type[Setup]] = {"local": Local, "standing": Standing, "s3": Bucket}
