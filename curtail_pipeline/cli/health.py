"""Whether the role that a container runs answers: what its first process listens on decides."""

import socket
from collections.abc import Iterator

import psutil

ROLES = {"dagster-webserver": 3000, "dagster api grpc": 4000, "flower-superlink": 8000, "curtail worker": 8100}
"""Command -> port. Roles without a port (daemon, site) are healthy while their process runs."""
PORTLESS = ("dagster-daemon", "dagster._daemon", "orchestration.daemon", "curtail site run")


def _commands() -> Iterator[str]:
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line:
            yield line


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=3):
            return True
    except OSError:
        return False


def check() -> bool:
    """True when a role runs here and every role that listens answers."""
    lines = list(_commands())
    listening = [port for role, port in ROLES.items() if any(role in line for line in lines)]
    portless = any(role in line for role in PORTLESS for line in lines)
    return bool(listening or portless) and all(_answers(port) for port in listening)
