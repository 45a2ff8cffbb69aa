"""Scratch folders: gone with their user, or with the next one where that was killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.held_folder import held_folder, own_temporary

HOLDS = """
import sys, time
from pathlib import Path
from curtail_pipeline.storage.held_folder import held_folder
with held_folder(Path(sys.argv[1])) as folder:
    (folder / "inside").mkdir()
    (folder / "inside" / "file").write_bytes(b"content")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_and_what_a_living_one_uses_stays(tmp_path: Path) -> None:
    others = [
        subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        killed, living = (Path(other.stdout.readline().strip()) for other in others if other.stdout)
        os.kill(others[0].pid, signal.SIGKILL)
        others[0].wait()
        assert (killed / "inside" / "file").is_file(), "nobody was left to remove it"
        with held_folder(tmp_path) as folder:
            assert {*tmp_path.iterdir()} == {living, folder}
            with held_folder(tmp_path) as second:
                assert {*tmp_path.iterdir()} == {living, folder, second}, "of one process as well"
        assert {*tmp_path.iterdir()} == {living} and (living / "inside" / "file").is_file()
    finally:
        for other in others:
            other.kill()
            other.wait()
            assert other.stdout is not None
            other.stdout.close()


def test_another_ones_folder_is_not_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    assert own_temporary("mine").is_dir()
    (tmp_path / f"theirs-{os.geteuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is not a folder of user"):
        own_temporary("theirs")
