"""An instance that is opened again does not read Dagster's migrations again."""

import subprocess
import sys
from pathlib import Path

CODE = """
import sys
import dagster as dg
from alembic.script import ScriptDirectory
from dagster._core.storage import sql
from curtail_pipeline.orchestration.migrations import read_migrations_once

def opened():
    with dg.DagsterInstance.from_config(sys.argv[1]) as instance:
        return {kind: store.alembic_version() for kind, store in
                (("runs", instance.run_storage), ("events", instance.event_log_storage),
                 ("schedules", instance.schedule_storage))}

seen, load = [], ScriptDirectory._load_revisions
def counted(self):
    seen.append(self.dir)
    return load(self)
ScriptDirectory._load_revisions = counted
before = opened()
usual = len(seen)
read_migrations_once()
assert opened() == before and all(current == newest for current, newest in before.values()), before
once = len(seen) - usual
assert opened() == before
print(usual, once, len(seen) - usual - once)
"""


def test_they_are_read_once(tmp_path: Path) -> None:
    """In a process of its own: it stays so for the rest of a process' life."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", CODE, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usual, once, again = map(int, done.stdout.split())
    assert usual > 1, "Dagster reads them once by itself: this is not needed"
    assert (once, again) == (1, 0)
