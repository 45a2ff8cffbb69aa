"""Scratch folders: gone with their user, or with the next one where that was killed."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.storage.held_folder import held_folder

HOLDS = """
import sys, time
from pathlib import Path
from curtail_pipeline.storage.held_folder import held_folder
with held_folder(Path(sys.argv[1]), 'x-') as folder:
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
        with held_folder(tmp_path, "x-") as folder:
            assert {*tmp_path.iterdir()} == {living, folder}
            with held_folder(tmp_path, "x-") as second:
                assert {*tmp_path.iterdir()} == {living, folder, second}, "of one process as well"
        assert {*tmp_path.iterdir()} == {living} and (living / "inside" / "file").is_file()
    finally:
        for other in others:
            other.kill()
            other.wait()
            assert other.stdout is not None
            other.stdout.close()


def test_nothing_but_folders_of_its_name_is_swept(tmp_path: Path) -> None:
    (tmp_path / "else").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "x-file").write_bytes(b"")
    (tmp_path / "x-link").symlink_to(tmp_path / "else")
    (tmp_path / "x-left").mkdir()
    with held_folder(tmp_path, "x-") as folder:
        kept = {tmp_path / name for name in ("else", "other", "x-file", "x-link")}
        assert {*tmp_path.iterdir()} == kept | {folder}
    assert {*tmp_path.iterdir()} == kept


def test_a_folder_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, real = list[str](), tempfile.mkdtemp

    def swept(**where: Any) -> str:
        made.append(real(**where))
        if len(made) == 1:
            Path(made[0]).rmdir()
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with held_folder(tmp_path, "") as folder:
        assert len(made) == 2 and folder.is_dir()
