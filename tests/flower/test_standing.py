"""Roles that stand in the foreground end when they are told to."""

import subprocess
import sys

CODE = """
import os, signal
from curtail_pipeline.flower.standing import _end_on_signals

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

told = _end_on_signals()
Finalised()
print(told.is_set())
os.kill(os.getpid(), signal.SIGTERM)
for _ in range(1000):
    pass
print("still here")
"""


def test_a_signal_counts_also_where_python_drops_what_its_handler_raises() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "True\n") and "Exception ignored" in done.stderr
