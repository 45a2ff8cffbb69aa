"""What the control plane's image lacks is not asked for by what runs in it."""

import subprocess
import sys
from pathlib import Path

import pytest
from image_layout import installed
from micro import environment

LACKING = """
import sys
for name in ("torch", "transformers", "pynvml"):
    sys.modules[name] = None
"""


@pytest.mark.parametrize(
    "program",
    [
        "import curtail_pipeline.definitions",
        "import dagster_webserver.app, curtail_pipeline.orchestration.daemon",
        "import curtail_pipeline.flower.server, curtail_pipeline.flower.standing",
        "import curtail_pipeline.stages.train, curtail_pipeline.stages.evaluate, curtail_pipeline.stages.initialise",
    ],
    ids=["code server", "webserver and daemon", "ServerApp", "runs"],
)
def test_no_role_of_the_control_plane_imports_torch(tmp_path: Path, program: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", f"{LACKING}{program}"]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_only_the_extra_of_sites_brings_torch() -> None:
    control, site = installed(()), installed(("site",))
    assert "torch" in site - control and "transformers" in site - control and "flwr" in control
    assert not any(name.startswith("nvidia") for name in control)
