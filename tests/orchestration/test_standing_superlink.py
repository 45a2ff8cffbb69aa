"""A finished run's segment again over a SuperLink and sites that stand on their own."""

import shutil
import socket
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from micro import curtail_here, start_curtail
from waiting import wait_until
from whole_runs import Finished, materialise, processes_of

from curtail_pipeline.flower.processes import free_port

pytestmark = pytest.mark.long


def test_a_standing_superlink_gives_the_same_weights_also_from_an_older_copy_of_its_database(
    copied: Finished, tmp_path: Path
) -> None:
    """A federated key again, over `curtail superlink` and one `curtail site run` per member, by TLS and keys.

    The copy is of the moment when sites were registered: it knows of no run, and the sites that are at work stay.
    """
    home, experiment, summary = copied.home, copied.experiment, copied.summary
    row = next(row for row in summary["checkpoints"] if row["mode"] == "federated")
    port = free_port()
    log, keys, address = tmp_path / "superlink.log", tmp_path / "keys", f"127.0.0.1:{port}"
    made = curtail_here("deploy", "keys", str(keys), "--host", "superlink.example", home=home)
    assert made.returncode == 0, made.stderr
    database, copy = tmp_path / "link" / "superlink.db", tmp_path / "copy.db"
    words = ["superlink", "--port", str(port), "--folder", str(database.parent), "--keys", str(keys)]
    roles = [start_curtail(*words, home=home, log=log)]

    def replay() -> None:
        (found,) = materialise(home, row["key"], CURTAIL_SUPERLINK=address, CURTAIL_CA=str(keys / "ca.crt"))
        assert found["identical"] is True, found["errors"]
        assert "PushMessages" in log.read_text(), "the segment did not run over this SuperLink"

    try:
        wait_until(lambda: listens(port), 300, "a SuperLink that listens")
        key = {
            site: ["--superlink", address, "--ca", str(keys / "ca.crt"), "--key", str(tmp_path / site)]
            for site in row["members"]
        }
        for site in row["members"]:
            admitted = curtail_here("site", "register", site, *key[site], home=home)
            assert admitted.returncode == 0, admitted.stderr
        with closing(sqlite3.connect(database)) as live, closing(sqlite3.connect(copy)) as kept:
            live.backup(kept)
        for site in row["members"]:
            words_of_site = ["site", "run", site, *key[site], "--experiment", str(experiment)]
            roles.append(start_curtail(*words_of_site, home=home, log=tmp_path / f"{site}.log"))
        wait_until(lambda: log.read_text().count("Fleet.ActivateNode") >= len(key), 300, "all sites online")
        replay()
        roles[0].terminate()
        roles[0].wait(300)
        for left in database.parent.glob(f"{database.name}*"):
            left.unlink()
        shutil.copy(copy, database)
        log.unlink()
        roles[0] = start_curtail(*words, home=home, log=log)
        logs = [tmp_path / f"{site}.log" for site in key]
        wait_until(lambda: all("Connection successful" in each.read_text() for each in logs), 300, "all sites again")
        replay()
    finally:
        for role in roles:
            role.terminate()
        for role in roles:
            role.wait(300)
    assert [role.returncode for role in roles[1:]] == [0] * len(row["members"])
    wait_until(lambda: not processes_of(home) and not listens(port), 90, "the end of all that the roles had started")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
