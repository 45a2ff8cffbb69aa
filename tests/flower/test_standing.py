"""Roles that stand in the foreground end when they are told to, and ask no proxy for their own parts."""

import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from curtail_pipeline.flower.processes import without_proxy
from curtail_pipeline.flower.standing import _Brought, _environment
from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.storage.folder_store import FolderStore
from curtail_pipeline.storage.home import EXPERIMENT_KEY
from curtail_pipeline.storage.links import BROUGHT

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


@pytest.mark.parametrize(("name", "other"), [("NO_PROXY", "no_proxy"), ("no_proxy", "NO_PROXY")])
def test_what_is_excepted_from_a_proxy_stays_so(name: str, other: str) -> None:
    found = without_proxy({name: "store.example", "HTTPS_PROXY": "http://proxy.example:3128"})
    assert found == {name: "store.example,127.0.0.1,localhost", other: "store.example,127.0.0.1,localhost"}
    assert set(without_proxy({}).values()) == {"127.0.0.1,localhost"}


def test_a_sites_parts_reach_each_other_where_a_proxy_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name, value in _environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    with httpx.Client() as client:
        direct = [client._transport_for_url(httpx.URL(f"http://{host}")) for host in ("127.0.0.1:8000", "localhost")]
        assert direct == [client._transport] * 2
        assert client._transport_for_url(httpx.URL("http://superlink.example")) is not client._transport


def test_a_linked_site_is_held_to_the_limits_of_the_experiment_that_its_orders_bring(tmp_path: Path) -> None:
    brought, store = _Brought(tmp_path), FolderStore(tmp_path / BROUGHT)
    assert brought.newer() is None, "no order has come yet"
    experiment = load_experiment("laptop").model_dump(mode="json")
    for transfer_s in (900.0, 1800.0):
        store.write_json(EXPERIMENT_KEY, experiment | {"federation": {"transfer_s": transfer_s, "compile_s": 3600}})
        found = brought.newer()
        assert found is not None and (found.transfer_s, found.compile_s) == (transfer_s, 3600)
        assert brought.newer() is None, "it is read once"
    store.write_json(EXPERIMENT_KEY, {"of": "another version"})
    assert brought.newer() is None
