"""Dagster's migrations are read once per process.

Whoever opens an instance compares its databases with the newest migration, and reads all migrations for that: 30 of the
45 ms of processor time that it takes (Dagster 1.13.27, SQLite). A code server opens one for every tick of a sensor.
"""

from functools import cache

from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage import sql


class _ReadOnce(ScriptDirectory):
    """Those of a package do not change while a process runs. Dagster holds a lock while it asks."""

    @classmethod
    def from_config(cls, config: Config) -> ScriptDirectory:
        return _read(config.get_main_option("script_location"))


@cache
def _read(location: str | None) -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", location or "")
    return ScriptDirectory.from_config(config)


def read_migrations_once() -> None:
    """Have it so in this process, and in those that are forked from it."""
    sql.ScriptDirectory = _ReadOnce  # type: ignore[attr-defined]


def preload_migrations() -> None:
    """Read them now, for what will be forked from this process. Starts no thread."""
    read_migrations_once()
    _read(sql.ALEMBIC_SCRIPTS_LOCATION).as_revision_number("head")
