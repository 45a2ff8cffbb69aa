import errno
import sqlite3
from pathlib import Path

import pytest
import sqlalchemy

from curtail_pipeline.errors import StoreError, is_out_of_space


def test_a_full_database_is_a_full_disk_also_behind_sqlalchemy(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'small.db'}")
    with engine.connect() as line:
        line.exec_driver_sql("PRAGMA max_page_count = 2")
        line.exec_driver_sql("CREATE TABLE t (text TEXT)")
        with pytest.raises(sqlalchemy.exc.OperationalError) as caught:
            line.exec_driver_sql(f"INSERT INTO t VALUES ('{'x' * 100_000}')")
    assert is_out_of_space(caught.value)


def test_a_full_disk_is_found_behind_what_was_raised_from_it() -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("could not write") from error
    except RuntimeError as error:
        assert is_out_of_space(error)


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "no"), sqlite3.OperationalError("locked"), StoreError("x")])
def test_other_faults_are_not(error: Exception) -> None:
    assert not is_out_of_space(error)
