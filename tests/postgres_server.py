"""A temporary Postgres cluster: Debian's, run as a user without rights, on a port of loopback."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import wait_until

from curtail_pipeline.flower.processes import free_port

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None, key=lambda path: float(path.parent.name))
"""Debian keeps them off PATH, by version."""
USER = "nobody"
"""Postgres does not run as root."""


@dataclass(frozen=True)
class Postgres:
    port: int

    def url(self, database: str) -> str:
        return f"postgresql+psycopg2://dagster@127.0.0.1:{self.port}/{database}"

    def restore(self, dump: str) -> None:
        """Put what `pg_dump` wrote of the database `dagster` in its place."""
        assert PROGRAMS is not None
        self.ask("dropdb", "--force", "dagster")
        self.ask("createdb", "dagster")
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "dagster", "-q", "-v", "ON_ERROR_STOP=1"]
        subprocess.run([PROGRAMS / "psql", *where, "dagster"], input=dump, text=True, check=True, capture_output=True)

    def ask(self, *words: str) -> str:
        """The output of one of Postgres' own programs."""
        assert PROGRAMS is not None
        where = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "dagster"]
        command = [str(PROGRAMS / words[0]), *where, *words[1:]]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@contextmanager
def serving() -> Iterator[Postgres]:
    """A cluster with an empty database `dagster`; it is gone with the block."""
    assert PROGRAMS is not None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="postgres-") as folder:  # pytest's folders are for their owner alone
        data = Path(folder)
        as_user: dict[str, Any] = {"cwd": "/"}
        if os.geteuid() == 0:
            shutil.chown(data, USER)
            user = pwd.getpwnam(USER)
            as_user |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        words = ["-D", folder, "-U", "dagster", "-A", "trust", "--no-sync", "--no-instructions"]
        subprocess.run([PROGRAMS / "initdb", *words], check=True, stdout=subprocess.DEVNULL, **as_user)
        words = ["-D", folder, "-p", str(port), "-h", "127.0.0.1", "-k", "", "-F"]
        server = subprocess.Popen(
            [PROGRAMS / "postgres", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_user
        )
        found = Postgres(port)
        try:
            ready = [PROGRAMS / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(port)]
            wait_until(lambda: subprocess.run(ready).returncode == 0, 600, "Postgres")
            found.ask("createdb", "dagster")
            yield found
        finally:
            server.terminate()
            server.wait(120)
