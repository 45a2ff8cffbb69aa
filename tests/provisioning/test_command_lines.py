"""Two command lines that start and stop a site: what they get, and what is said of one that fails."""

import sys
import time
from pathlib import Path

import pytest

from curtail_pipeline.flower.processes import is_alive
from curtail_pipeline.provisioning.command_lines import CommandLines
from curtail_pipeline.provisioning.provisioner import ProvisionError
from curtail_pipeline.settings.provisioner_settings import CommandProvisioner


def commands(folder: Path, script: str = "", **more: object) -> CommandLines:
    tool = folder / "tool.sh"
    tool.write_text("#!/bin/sh\n" + script)
    tool.chmod(0o755)
    line = f"{tool} '{{site}}' {folder}"
    return CommandLines(CommandProvisioner(kind="command", start=f"{line} up", stop=f"{line} down", **more))


def test_a_command_gets_the_sites_name_and_an_environment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/ours")
    monkeypatch.setenv("HOME", "/home/someone")
    tool = commands(tmp_path, 'echo "$1 $3 $CURTAIL_SITE $PYTHONPATH $HOME $REGION" >> $2/told', env={"REGION": "west"})
    tool.start("fresno")
    tool.stop("fresno")
    told = [line.split(" ") for line in (tmp_path / "told").read_text().splitlines()]
    assert told == [["fresno", what, "fresno", "", "/home/someone", "west"] for what in ("up", "down")]
    assert tool.state("fresno").phase == "unknown"


def test_what_fails_is_told_in_one_line_with_its_last_words(tmp_path: Path) -> None:
    tool = commands(tmp_path, "for n in 1 2 3 4 5 6 7; do echo line $n; done\necho 'no quota' >&2\nexit 3")
    with pytest.raises(
        ProvisionError, match=r"site fresno: `.*tool.sh 'fresno' .* up` ended with 3; it said: "
    ) as told:
        tool.start("fresno")
    assert str(told.value).endswith("line 4 | line 5 | line 6 | line 7 | no quota") and "\n" not in str(told.value)
    missing = CommandLines(CommandProvisioner(kind="command", start="/no/sky launch", stop="true"))
    with pytest.raises(ProvisionError, match="site fresno: cannot start it, `/no/sky launch`: No such file"):
        missing.start("fresno")


def test_one_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    tool = commands(
        tmp_path, f"{sys.executable} -c 'import time; time.sleep(60)' & echo $! > $2/pid; wait", timeout_s=0.5
    )
    began = time.monotonic()
    with pytest.raises(ProvisionError, match=r"took longer than its 0.5 s and was killed; raise provisioner.timeout_s"):
        tool.start("fresno")
    assert time.monotonic() - began < 20
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, "what it started lives on"
        time.sleep(0.02)
