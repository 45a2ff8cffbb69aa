"""How many cores this process may use: what a container or an affinity leaves it of the machine's."""

import math
import os
from pathlib import Path
from typing import Final

CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")
"""Microseconds of processor time and of the period in which they may be used; `max` for no limit (cgroup v2)."""


def usable_cores(limit: Path = CPU_LIMIT) -> int:
    """At least 1; a share of a core counts as a whole one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, period = limit.read_text().split() if limit.exists() else ("max", "1")
    return cores if quota == "max" else max(1, min(cores, math.ceil(int(quota) / int(period))))
