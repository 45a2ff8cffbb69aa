"""Parts of the UI that end by themselves are started again, one that never lasts is an error."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from curtail_pipeline.cli import ui
from curtail_pipeline.cli.ui import MOST_ENDS, Services, UiError


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
