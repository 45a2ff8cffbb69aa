"""The compose file from empty volumes to a federated checkpoint and a cancelled one, as processes in namespaces."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from micro import EXPERIMENT, curtail, write_trace
from rehearsal import NGINX, POSTGRES

PROGRAM = Path(__file__).with_name("rehearsal.py")
NAMESPACES = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]


def missing() -> str:
    """Why there is no rehearsal on this machine; empty where there is one."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return "needs root, for namespaces and the image's user"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode != 0:
        return "this machine gives no namespaces"
    if not POSTGRES.is_dir():
        return "no Postgres; Debian's package is postgresql"
    return "" if NGINX else "no nginx; Debian's package is nginx-light"


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_from_empty_volumes_to_a_federated_checkpoint(tmp_path: Path) -> None:
    if reason := missing():
        pytest.skip(reason)
    trace = write_trace(tmp_path / "trace.csv", {"NORTH": [(0, 240)], "SOUTH": [(0, 240)]})
    sites = [{**site, "steps_per_s": 0.05} for site in EXPERIMENT["sites"][:2]]
    content: dict[str, Any] = {
        **EXPERIMENT, "traces": {"provider": "file", "path": str(trace)}, "sites": sites, "replay": {"speed": 20},
        "rounds": {"round_s": 300, "max_rounds": 1}, "job": {"steps": 4000},
        "federation": {"liveness_s": 30, "delivery_s": 120},
    }  # fmt: skip
    (tmp_path / "micro.yaml").write_text(yaml.safe_dump(content))
    file = tmp_path / "out" / "compose.yaml"
    written = curtail("deploy", "compose", "-e", str(tmp_path / "micro.yaml"), "--file", str(file), home=tmp_path)
    assert written.returncode == 0, written.stderr
    (tmp_path / "run").mkdir()
    command = [*NAMESPACES, sys.executable, str(PROGRAM), str(file), str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stderr[-6000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["members"] == ["NORTH", "SOUTH"] and found["cancelled"] == "TerminateRunSuccess"
    assert found["cancel_s"] < 30, "the sites train on after their segment was cancelled"
    assert found["control_with_torch"] == [] and {"code", "webserver", "daemon"} <= set(found["control_without_torch"])
    assert found["users"] == ["10001"] and found["environments_with_the_password"] == []
    assert found["logs_with_addresses"] == []
