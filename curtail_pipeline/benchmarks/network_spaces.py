"""Machines that share nothing, on one machine: namespaces of network, mounts, processes and IPC (Linux, as root).

Each space has a root of its own, in memory or in a file without a name, with the installed software read-only and
nothing else of this machine. A space ends with all that runs in it when it is closed, and when the process that made it
dies, however that happens: its first process dies with its maker, and the kernel ends the others and everything that
was mounted or linked.
"""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

import curtail_pipeline
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.flower.processes import die_with_parent
from curtail_pipeline.storage.held_folder import held_folder

_IN_MEMORY = "mount -t tmpfs -o mode=755,size=75% space"
MAKES_DISKS = "mkfs.ext4"
"""Needed as well for a space on disk."""
TOOLS = ("unshare", "nsenter", "ip", "tc", "mount", "pivot_root")
WORK = "/space"
"""Working directory and home in every space; writable."""
_SYSTEM = tuple(map(Path, ("/bin", "/sbin", "/lib", "/lib32", "/lib64")))
_CAP_SYS_ADMIN = 21
_LATENCY = "400ms"
"""How long a packet may wait for its turn before it is dropped."""
_SETUP = """
set -e
root={root}
mount --make-rprivate /
{mount} $root
cd $root
mkdir -p old proc dev dev/shm tmp space
{links}
for path in {paths}; do
    mkdir -p .$path
    mount --bind $path .$path
    mount -o remount,bind,ro .$path
done
mount -t proc proc proc
mknod -m 666 dev/null c 1 3; mknod -m 666 dev/zero c 1 5; mknod -m 666 dev/random c 1 8; mknod -m 666 dev/urandom c 1 9
cp /etc/hosts space/hosts
mount --bind space/hosts etc/hosts
ip link set lo up
pivot_root . old
umount -l /old
rmdir /old
cd {work}
echo ready
exec sleep infinity
"""


def why_not(*more: str) -> str | None:
    """Why this machine cannot have spaces; None where it can.

    Args:
        more: programs that are needed as well.
    """
    if sys.platform != "linux":
        return f"namespaces are Linux's, this is {sys.platform}"
    if os.geteuid() != 0:
        return f"it makes namespaces, which takes root (this is user {os.geteuid()}); run it with sudo"
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    held = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff"))
    if not held >> _CAP_SYS_ADMIN & 1:
        return "it makes namespaces, and this root lacks CAP_SYS_ADMIN; run it outside the container"
    missing = [name for name in (*TOOLS, *more) if program(name) is None]
    if missing:
        return f"{', '.join(missing)} is not installed (Debian: iproute2, util-linux, nginx-light, e2fsprogs)"
    return None


def program(name: str) -> str | None:
    """Where a program is, also where the PATH of a service has no sbin."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")


class Space:
    """One such machine.

    Args:
        name: for messages.
        disk_gib: room on this machine's disk for what is written in it; in memory when not given.

    Raises:
        SettingsError: it cannot be made; nothing of it is left.
    """

    def __init__(self, name: str, disk_gib: int | None = None) -> None:
        self.name = name
        # The mount is in the space alone, and the kernel has a file without a name as long as it is mounted.
        with held_folder(Path(tempfile.gettempdir()), "curtail-space-") as folder:
            root, image = folder / "root", folder / "image"
            root.mkdir()
            script = _SETUP.format(
                root=root, links=_links(), paths=" ".join(map(shlex.quote, _software())), work=WORK,
                mount=_IN_MEMORY if disk_gib is None else _on_disk(image, disk_gib),
            )  # fmt: skip
            apart = ["unshare", "--net", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child"]
            self._first = subprocess.Popen(
                [*apart, "sh", "-c", script],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, preexec_fn=die_with_parent,
            )  # fmt: skip
            assert self._first.stdout is not None
            said = self._first.stdout.readline()
        if said.strip() != "ready":
            self.close()
            raise SettingsError(f"no space {name!r} could be made on this machine; its messages stand above")
        (child,) = psutil.Process(self._first.pid).children()
        self.pid = child.pid
        """Of its first process, as this machine counts."""

    def close(self) -> None:
        """End everything in it."""
        self._first.kill()
        self._first.wait()
        if self._first.stdout is not None:
            self._first.stdout.close()

    def __enter__(self) -> "Space":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def command(self, words: Sequence[str]) -> list[str]:
        """What runs a command line in it."""
        return ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-i", "-u", f"--wdns={WORK}", "--", *words]

    def start(self, words: Sequence[str], log: Path, environment: Mapping[str, str] = {}) -> "subprocess.Popen[str]":
        """Start a command in it; both outputs go to a file of this machine."""
        with log.open("a") as stream:
            return subprocess.Popen(
                self.command(words), env=self._environment(environment), stdin=subprocess.DEVNULL, stdout=stream,
                stderr=stream, text=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def listen(self, words: Sequence[str], log: Path, environment: Mapping[str, str] = {}) -> "subprocess.Popen[str]":
        """As `start`, with its standard output as a stream."""
        with log.open("a") as stream:
            return subprocess.Popen(
                self.command(words), env=self._environment(environment), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=stream, text=True, preexec_fn=die_with_parent,
            )  # fmt: skip

    def run(
        self, words: Sequence[str], environment: Mapping[str, str] = {}, given: str = "", timeout: float = 120
    ) -> str:
        """The output of a command in it.

        Raises:
            SettingsError: it failed.
        """
        done = subprocess.run(
            self.command(words), env=self._environment(environment), input=given, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip
        if done.returncode:
            raise SettingsError(
                f"{shlex.join(words)} in {self.name} ended with {done.returncode}: {done.stderr[-2000:]}"
            )
        return done.stdout

    def write(self, path: str, content: str, mode: str = "600") -> None:
        """Bring a file, as an operator would carry it."""
        folder = shlex.quote(str(Path(path).parent))
        self.run(["sh", "-c", f"mkdir -p {folder}; umask 077; cat > {path}; chmod {mode} {path}"], given=content)

    def knows(self, host: str, address: str) -> None:
        """Give a name to an address, in this space alone."""
        self.run(["sh", "-c", f"echo {shlex.quote(address)} {shlex.quote(host)} >> /etc/hosts"])

    def read(self, path: str) -> str:
        return self.run(["cat", path])

    def _environment(self, more: Mapping[str, str]) -> dict[str, str]:
        python = os.environ.get("PYTHONPATH")
        return {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": WORK, "TMPDIR": "/tmp", "LANG": "C.UTF-8", **({"PYTHONPATH": python} if python else {}), **more,
        }  # fmt: skip


@contextmanager
def spaces(*names: str, disk_gib: int | None = None) -> Iterator[list[Space]]:
    """Some, closed with the block; arguments and errors as of `Space`."""
    with ExitStack() as stack:
        yield [stack.enter_context(Space(name, disk_gib)) for name in names]


def _on_disk(image: Path, gib: int) -> str:
    """What mounts a file system in a new sparse file.

    Raises:
        SettingsError: it cannot be made.
    """
    make = program(MAKES_DISKS)
    if make is None:
        raise SettingsError(f"{MAKES_DISKS} is not installed, which a space on disk takes (Debian: e2fsprogs)")
    try:
        with image.open("wb") as stream:
            stream.truncate(gib << 30)
    except OSError as error:
        raise SettingsError(f"{image.parent} takes no file of {gib} GiB ({error.strerror}); set TMPDIR") from error
    # No journal: nothing of it is there after a crash.
    _done([make, "-q", "-O", "^has_journal", "-E", "lazy_itable_init=1", str(image)])
    return f"mount -o loop {shlex.quote(str(image))}"


def _done(words: Sequence[str]) -> None:
    """Run a command of this machine.

    Raises:
        SettingsError: it failed; with what it said.
    """
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        said = " ".join(done.stderr.split()) or "nothing"
        raise SettingsError(f"{shlex.join(words)} ended with {done.returncode} and said: {said[-1000:]}")


def _software() -> list[str]:
    """Folders that hold Python, the product and what they need of the system; each once, outer ones only."""
    wanted = ["/usr", "/etc", sys.prefix, sys.base_prefix, str(Path(curtail_pipeline.__file__).parents[1])]
    wanted += filter(os.path.isdir, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    wanted += [str(path) for path in _SYSTEM if path.is_dir() and not path.is_symlink()]
    found: list[str] = []
    for path in sorted({str(Path(path).absolute()) for path in wanted}):
        if not any(path.startswith(f"{outer}/") for outer in found):
            found.append(path)
    return found


def _links() -> str:
    """Commands that make the system's own links (`/bin` to `usr/bin`) in the new root."""
    links = [path for path in _SYSTEM if path.is_symlink()]
    return "\n".join(f"ln -s {shlex.quote(str(path.readlink()))} .{path}" for path in links)


def link(hub: Space, site: Space, number: int, mbit_s: float) -> tuple[str, str]:
    """A line between two spaces that carries so much each way; the addresses of the hub's and the site's end.

    Nothing of it is ever in this machine's own network.
    """
    there, here = f"10.77.{number}.1", f"10.77.{number}.2"
    shape = ["rate", f"{mbit_s:g}mbit", "burst", "256kb", "latency", _LATENCY]
    for space, end, address in ((hub, f"site{number}", there), (site, "hub", here)):
        if space is hub:
            peer = ["type", "veth", "peer", "name", "hub", "netns", str(site.pid)]
            _in_network(hub, ["ip", "link", "add", end, *peer])
        _in_network(space, ["ip", "addr", "add", f"{address}/30", "dev", end])
        _in_network(space, ["ip", "link", "set", end, "up"])
        _in_network(space, ["tc", "qdisc", "add", "dev", end, "root", "tbf", *shape])
    return there, here


def _in_network(space: Space, words: Sequence[str]) -> None:
    """With this machine's processes, so that a space's can be named by their ids here."""
    tool = program(words[0])
    assert tool is not None
    _done(["nsenter", "-t", str(space.pid), "-n", "--", tool, *words[1:]])


@dataclass(frozen=True)
class Mount:
    """A line of `/proc/PID/mountinfo`."""

    device: str
    root: str
    """What of the file system is mounted."""
    at: str
    writable: bool

    def overlaps(self, other: "Mount") -> bool:
        inner, outer = f"{self.root.rstrip('/')}/", f"{other.root.rstrip('/')}/"
        return self.device == other.device and (inner.startswith(outer) or outer.startswith(inner))


def mounts_of(pid: int) -> list[Mount]:
    """What a process sees (proc(5))."""
    found = []
    for line in Path(f"/proc/{pid}/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        _, _, device, root, at, options, *_ = left.split()
        writable = "rw" in options.split(",") and "rw" in right.split()[-1].split(",")
        found.append(Mount(device, root, at, writable))
    return found


def common_paths(pids: Mapping[str, int]) -> list[str]:
    """Places by which something one process writes could be read by another; told from /proc, and tried.

    Args:
        pids: name -> process.
    """
    found, names = [], [*pids]
    mounts = {name: mounts_of(pid) for name, pid in pids.items()}
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            found += [
                f"{one}:{mine.at} is {other}:{its.at}"
                for mine in mounts[one]
                for its in mounts[other]
                if mine.overlaps(its) and (mine.writable or its.writable)
            ]
    for one in names:
        marks = [_mark(pids[one], mount.at) for mount in mounts[one] if mount.writable]
        for other in names:
            if other != one:
                places = (Path(f"/proc/{pids[other]}/root{mount.at}") for mount in mounts[other])
                found += [f"{one}'s {mark.name} is at {place}" for mark in marks if mark for place in places
                          if (place / mark.name).exists()]  # fmt: skip
        for mark in filter(None, marks):
            mark.unlink()
    return found


def _mark(pid: int, at: str) -> Path | None:
    """A new file at that place of a process; None where none can be made (`/proc`)."""
    path = Path(f"/proc/{pid}/root{at}") / f".mark-{pid}"
    try:
        path.touch()
    except OSError:
        return None
    return path


def software_paths(pids: Mapping[str, int]) -> list[str]:
    """What all processes see of this machine's own file systems; nobody can write to it."""
    seen = [{mount.at for mount in mounts_of(pid) if not mount.writable} for pid in pids.values()]
    return sorted(set.intersection(*seen))
