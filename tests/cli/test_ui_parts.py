"""Parts of the UI that end by themselves are started again, one that never lasts is an error."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curtail_pipeline.cli import ui
from curtail_pipeline.cli.ui import MOST_ENDS, Services, UiError
from curtail_pipeline.orchestration import watchdog


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Services:
    monkeypatch.setattr(ui, "POLL_S", 0.01)
    home = SimpleNamespace(dagster=tmp_path / "dagster", root=tmp_path, experiment_file=tmp_path / "x.yaml")
    home.dagster.mkdir()
    project: Any = SimpleNamespace(home=home, span=None)
    return Services(project, "127.0.0.1", 1, sensors=True)


def test_a_part_that_never_lasts_is_an_error(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    services._start("webserver", ["this"])
    with pytest.raises(UiError, match=r"(?s)the webserver of the UI ended with exit code 0; .*Zen of Python"):
        services.wait()
    assert sum("is started again" in record.message for record in caplog.records) == MOST_ENDS


def test_a_part_that_is_killed_while_it_starts_is_started_again(
    services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ends by itself then is an error at once."""
    seen = tmp_path / "seen"
    once = f"import os, pathlib as p, time; s = p.Path({str(seen)!r}); n = s.exists(); s.touch()\n"
    (tmp_path / "part.py").write_text(once + "time.sleep(60) if n else os.kill(os.getpid(), 9)\n")
    monkeypatch.setitem(services._environment, "PYTHONPATH", str(tmp_path))
    services._start("webserver", ["part"])
    first = services._running["webserver"].pid
    try:
        monkeypatch.setattr(ui, "_answers", lambda host, port: services._running["webserver"].pid != first)
        services._await("webserver", "127.0.0.1", 1)
    finally:
        services.stop()
    monkeypatch.setattr(ui, "_answers", lambda host, port: False)
    services._start("daemon", ["this"])
    services._running.pop("webserver").wait()
    with pytest.raises(UiError, match="the daemon of the UI ended with exit code 0"):
        services._await("daemon", "127.0.0.1", 1)


def test_a_proxy_is_not_asked_for_this_machine(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    assert services._environment["no_proxy"].endswith("127.0.0.1,localhost"), "gRPC would ask it for the code server"
    asked = []

    class Webserver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with HTTPServer(("127.0.0.1", 0), Webserver) as server:
        threading.Thread(target=server.handle_request).start()
        watchdog._reload(f"http://127.0.0.1:{server.server_port}")
    assert asked == ["/graphql"]
