"""What a forked child does at its end; in a process of its own, which forks."""

import subprocess
import sys
from pathlib import Path

PARENT = """
import atexit, os, sys, tempfile, weakref
from curtail_pipeline.flower.processes import fork_into

class Held:
    pass

def body():
    mine = Held()
    weakref.finalize(mine, print, "the child's finalizer")
    globals()["kept"] = mine
    atexit.register(print, "the child's end")

own = Held()
weakref.finalize(own, print, "the parent's finalizer")
atexit.register(print, "the parent's end")
folder = tempfile.TemporaryDirectory(dir=sys.argv[1])
os.waitpid(fork_into(body, stdout=1, stderr=2), 0)
print("after the child:", os.path.isdir(folder.name), flush=True)
"""


def test_a_child_does_what_it_has_put_off_itself_and_leaves_the_rest_to_its_parent(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PARENT, str(tmp_path)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    child, parent = done.stdout.split("after the child: True\n")
    assert sorted(child.splitlines()) == ["the child's end", "the child's finalizer"]
    assert sorted(parent.splitlines()) == ["the parent's end", "the parent's finalizer"]
