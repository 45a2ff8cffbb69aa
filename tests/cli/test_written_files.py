"""A path that an option names and that cannot be written: one error that names both, and no work is lost to it."""

from pathlib import Path

import pytest
from micro import curtail_here, write_experiment


def refused(*words: str, home: Path) -> str:
    done = curtail_here(*words, home=home)
    assert done.returncode == 1 and not done.stdout, done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr.removeprefix("curtail: ")


@pytest.mark.parametrize(
    ("place", "why"), [("trace.csv/plot.svg", "cannot be written: "), ("folder.svg", "is a folder; name a file in it")]
)
def test_a_plot_that_cannot_be_written_is_told_before_anything_is_computed(
    tmp_path: Path, place: str, why: str
) -> None:
    experiment = str(write_experiment(tmp_path))
    (tmp_path / "folder.svg").mkdir()
    (tmp_path / "empty.csv").touch()  # refused as soon as it is read
    words = ["--compare", "--plot", str(tmp_path / place)]
    message = refused("simulate", "--traces", str(tmp_path / "empty.csv"), "-e", experiment, *words, home=tmp_path)
    assert message.startswith(f"--plot {tmp_path / place} {why}")


@pytest.mark.parametrize(
    ("words", "begin"),
    [
        ("compose -e EXPERIMENT --file FILE/compose.yaml", "--file FILE/compose.yaml cannot be written: "),
        ("compose -e EXPERIMENT --file FOLDER/c.yaml --secrets FILE/s", "--secrets FILE/s cannot be written: "),
        ("keys FILE/keys --host here.example", "FOLDER FILE/keys cannot be written: "),
    ],
)
def test_files_of_a_deployment_that_cannot_be_written(tmp_path: Path, words: str, begin: str) -> None:
    experiment, file = str(write_experiment(tmp_path)), str(tmp_path / "trace.csv")
    asked = [word.replace("EXPERIMENT", experiment).replace("FILE", file) for word in words.split()]
    asked = [word.replace("FOLDER", str(tmp_path)) for word in asked]
    assert refused("deploy", *asked, home=tmp_path).startswith(begin.replace("FILE", file))
