"""Files that an option names and a command writes: one that cannot be written is said with the option."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from curtail_pipeline.errors import SettingsError, is_out_of_space


@contextmanager
def writing(option: str, path: Path) -> Iterator[None]:
    """Around what writes to the path.

    Raises:
        SettingsError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        if is_out_of_space(error):
            raise
        at = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise SettingsError(
            f"{option} {path} cannot be written: {error.strerror or error}{at}; give a place that you may write to"
        ) from error


def make_room(option: str, file: Path) -> None:
    """Make the folder of a file that is written later, so that no work is lost to a path that cannot be.

    Raises:
        SettingsError: there is no such place, or the file is a folder.
    """
    with writing(option, file):
        file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_dir():
        raise SettingsError(f"{option} {file} is a folder; name a file in it")
