"""What the supervisor knows of a process that it keeps running."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Child:
    """A process that is to run as long as the supervisor does."""

    name: str
    start: Callable[["Child"], int]
    log: Path
    pid: int | None = None
    began: float = 0.0
    offset: int = 0
    ends: int = 0
    due: float = 0.0
    ready: bool = False
    node_id: int | None = None
    """Of a SuperNode, once it is ready."""

    def forget(self) -> None:
        """What was found out about a process that has ended."""
        self.ready, self.node_id = False, None

    def output(self) -> str:
        """What the running process has logged."""
        with contextlib.suppress(OSError), self.log.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(1 << 20).decode(errors="replace")
        return ""
