"""Flower's commands, started by name, are forks of a site's agent; in a process of its own, which forks."""

import subprocess
import sys
from pathlib import Path

AGENT = """
import os, subprocess, sys
from pathlib import Path
from curtail_pipeline.flower.fork_server import ForkServer
with ForkServer(Path(sys.argv[1])) as forks:
    asked = subprocess.Popen(["flower-superexec", "--version"])
    for turn in range(100):
        if forks.serve(0.2):
            break
    print("ended", asked.wait(10), "turns", turn > 0 or turn, flush=True)
    lasting = "import sys, time; time.sleep(99)"
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", lasting])
    forks._spawned._argv[pid] = ["flwr-clientapp"]
    assert not forks.serve(0.1)
assert not os.path.exists(f"/proc/{pid}") and not (Path(sys.argv[1]) / "spawn.sock").exists()
print("gone")
"""


def test_a_superexec_is_forked_and_its_end_is_told(tmp_path: Path) -> None:
    folder = tmp_path / ("a-long-name" * 12) / "forks"
    done = subprocess.run(
        [sys.executable, "-c", AGENT, str(folder)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "ended 0" in done.stdout and done.stdout.endswith("gone\n")
    assert "without the supervisor" not in done.stderr, "the script started the command the usual way"
