"""A process in namespaces of its own, as a container has them: `python container.py SPEC` (JSON), as root.

It sees the image's files, its own mounts and nothing else of this machine but the system's programs, and runs as the
image's user. This program is the first process in there and does what `tini` does: it reaps, and passes SIGTERM on.
"""

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import TypedDict

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
SYSTEM = ("usr", "dev", "etc/ssl", "etc/alternatives", "etc/ld.so.cache", "etc/localtime")
LINKS = ("bin", "sbin", "lib", "lib64")


class Bound(TypedDict):
    source: str
    target: str
    read_only: bool


class Spec(TypedDict):
    root: str
    bound: list[Bound]
    files: dict[str, str]
    """Content by path."""
    environment: dict[str, str]
    workdir: str
    uid: int
    command: list[str]
    log: str


def mount(source: str, target: str, kind: str | None = None, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, None) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), f"{source} -> {target}")


def bind(source: str, target: Path, read_only: bool) -> None:
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(source, str(target), flags=MS_BIND | MS_REC)
    if read_only:
        mount("none", str(target), flags=MS_BIND | MS_REMOUNT | MS_RDONLY)


def furnish(spec: Spec) -> None:
    root = Path(spec["root"])
    mount("none", "/", flags=MS_REC | MS_PRIVATE)
    for name in LINKS:
        (root / name).symlink_to(Path(f"/{name}").readlink())
    for name in SYSTEM:
        if Path(f"/{name}").exists():
            bind(f"/{name}", root / name, read_only=False)
    for name in ("proc", "tmp", "run", "home"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    mount("proc", str(root / "proc"), "proc")
    for each in spec["bound"]:
        bind(each["source"], root / each["target"].lstrip("/"), each["read_only"])
    for path, content in spec["files"].items():
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
    os.chroot(root)


def main() -> int:
    spec: Spec = json.loads(Path(sys.argv[1]).read_text())
    furnish(spec)
    log = os.open("/dev/null", os.O_RDWR)
    child = os.fork()
    if child == 0:
        os.setsid()
        os.dup2(log, 0)
        os.setgid(spec["uid"])
        os.setgroups([])
        os.setuid(spec["uid"])
        os.chdir(spec["workdir"])
        os.execvpe(spec["command"][0], spec["command"], spec["environment"])
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(child, signal.SIGTERM))
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except InterruptedError:
            continue
        if pid == child:
            return os.waitstatus_to_exitcode(status) & 0xFF


if __name__ == "__main__":
    sys.exit(main())
