"""Flower's commands, started by name, are forks of a site's agent; in a process of its own, which forks."""

import subprocess
import sys
from pathlib import Path

AGENT = """
import json, os, socket, subprocess, sys
from pathlib import Path
from curtail_pipeline.errors import FederationError
from curtail_pipeline.flower.fork_server import ForkServer
from curtail_pipeline.flower.processes import fork_into
with ForkServer(Path(sys.argv[1])) as forks:
    words = ["flower-superexec", "--version", "--parent-pid", str(os.getpid())]
    asked = subprocess.Popen(words)
    try:
        for turn in range(100):
            forks.serve(0.2, os.getpid())
    except FederationError as error:
        print("ended", asked.wait(10), error, flush=True)
    os.chdir(sys.argv[1])
    with socket.socket(socket.AF_UNIX) as impatient:
        impatient.connect("spawn.sock")
        socket.send_fds(impatient, [json.dumps(words).encode()], [1, 2])
    assert not forks.serve(0.1), "who has hung up starts the command itself"
    call = lambda: print("called", Path("/proc/self/comm").read_text(), end="")
    os.waitpid(fork_into(call, stdout=1, stderr=2, argv=["flower-superexec"]), 0)
    lasting = "import sys, time; time.sleep(99)"
    pid = os.fork()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-c", lasting])
    forks._spawned._argv[pid] = ["flwr-clientapp"]
    assert not forks.serve(0.1)
assert not os.path.exists(f"/proc/{pid}") and not (Path(sys.argv[1]) / "spawn.sock").exists()
print("gone")
"""


def test_a_superexec_is_forked_again_until_it_ends_all_the_time(tmp_path: Path) -> None:
    folder = tmp_path / ("a-long-name" * 12) / "forks"
    done = subprocess.run(
        [sys.executable, "-c", AGENT, str(folder)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "ended 0 a SuperExec ended 4 times within 60 s" in done.stdout
    assert done.stdout.count("Flower version") == 5, "the first, and once for every end"
    assert "called flower-superexe\n" in done.stdout and done.stdout.endswith("gone\n")
    assert "without the supervisor" not in done.stderr, "the script started the command the usual way"
