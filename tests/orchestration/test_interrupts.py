import subprocess
import sys

CODE = """
import signal, sys, time
from curtail_pipeline.orchestration.interrupts import resending

class Finalised:
    def __del__(self):
        if sys.argv[1] == "interrupt":
            signal.raise_signal(signal.SIGTERM)
        else:
            raise ValueError("a fault of its own")

signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    with resending(KeyboardInterrupt):
        Finalised()
        print("went on", flush=True)
        time.sleep(10 if sys.argv[1] == "interrupt" else 0.5)
except KeyboardInterrupt:
    print("interrupted")
"""


def told(what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CODE, what], capture_output=True, text=True, timeout=300, check=True)


def test_an_interrupt_in_a_finaliser_is_sent_again() -> None:
    assert told("interrupt").stdout.split("\n")[:2] == ["went on", "interrupted"]


def test_other_faults_of_finalisers_are_shown_as_ever() -> None:
    done = told("fault")
    assert done.stdout == "went on\n"
    assert "a fault of its own" in done.stderr
