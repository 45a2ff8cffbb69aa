import signal
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

IN_THE_BACKGROUND = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for `curtail ... &` in a script
from dagster._utils.interrupts import capture_interrupts, raise_interrupts_as
from curtail_pipeline.cli import main

def runs():
    with capture_interrupts(), raise_interrupts_as(KeyboardInterrupt):
        pass
    print("ready", flush=True)
    time.sleep(60)

main.app = runs
main.main()
"""


def told(what: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", CODE, what], capture_output=True, text=True, timeout=300, check=True)


def test_an_interrupt_in_a_finaliser_is_sent_again() -> None:
    assert told("interrupt").stdout.split("\n")[:2] == ["went on", "interrupted"]


def test_other_faults_of_finalisers_are_shown_as_ever() -> None:
    done = told("fault")
    assert done.stdout == "went on\n"
    assert "a fault of its own" in done.stderr


def test_a_command_in_the_background_ends_when_told_to_after_dagster_has_executed() -> None:
    process = subprocess.Popen([sys.executable, "-c", IN_THE_BACKGROUND], stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT and err.splitlines()[-1] == "KeyboardInterrupt"
