"""A whole run that is told to stop, then killed, then run to its end."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from micro import curtail, start_curtail
from waiting import wait_until
from whole_runs import Finished, manifests, processes_of, write

pytestmark = pytest.mark.long


def test_told_to_stop_then_killed_it_goes_on_and_ends_with_the_same_weights(finished: Finished, tmp_path: Path) -> None:
    """SIGTERM in the first segment, SIGKILL in a federated round, then to the end."""
    reference = list(manifests(finished.home).values())[-1]
    experiment = write(tmp_path / "input")
    log = tmp_path / "log"
    scratch = tmp_path / "micro" / "store" / "scratch"

    def interrupted_when(under_way: Callable[[], bool], what: str, told: signal.Signals) -> int:
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a script does that starts it with `&`
        process = start_curtail("run", "--experiment", str(experiment), home=tmp_path, log=log)
        signal.signal(signal.SIGINT, before)

        def seen() -> bool:
            assert process.poll() is None, log.read_text()
            return under_way()

        wait_until(seen, 300, what)
        process.send_signal(told)
        code = process.wait(300)
        wait_until(lambda: not processes_of(tmp_path), 90, "the end of what the run had started")
        return code

    def first_segment() -> bool:
        return any(scratch.glob("ckpt-000001/*/flower.json"))

    assert interrupted_when(first_segment, "a segment", signal.SIGTERM) == 130
    assert "run it again" in log.read_text() and "Traceback" not in log.read_text()

    def federated_round() -> bool:
        return any('"federated"' in plan.read_text() for plan in scratch.glob("*/*/plan.json") if plan.exists())

    assert interrupted_when(federated_round, "a federated segment", signal.SIGKILL) == -signal.SIGKILL
    before = manifests(tmp_path)
    done = curtail("run", "--experiment", str(experiment), home=tmp_path)
    assert done.returncode == 0, done.stderr
    after = manifests(tmp_path)
    assert {key: after[key].sha256() for key in before} == {key: found.sha256() for key, found in before.items()}
    last = list(after.values())[-1]
    assert last.ledger == reference.ledger
    assert last.files["model.safetensors"].sha256 == reference.files["model.safetensors"].sha256
    assert not processes_of(tmp_path)
