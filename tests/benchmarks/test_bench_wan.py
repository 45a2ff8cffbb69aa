"""The parts of `bench wan`: spaces that share nothing and die with their maker, the relay, and what is counted."""

import os
import re
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from planned_parts import planned
from waiting import wait_until

from curtail_pipeline.benchmarks import bench_wan, network_spaces, wan_job
from curtail_pipeline.benchmarks.network_spaces import (
    MAKES_DISKS,
    Space,
    common_paths,
    link,
    program,
    spaces,
    why_not,
)
from curtail_pipeline.benchmarks.wan_figures import Line, figures, stays
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.flower.processes import free_port, is_alive
from curtail_pipeline.scheduling.timing import SegmentPlan
from curtail_pipeline.settings.experiment import parse_experiment

needs_root = pytest.mark.skipif(why_not() is not None, reason=f"no namespaces here: {why_not()}")


def test_without_root_it_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(
        SettingsError, match=r"cannot run here: it makes namespaces, which takes root \(this is user 1000"
    ):
        bench_wan.run()
    with pytest.raises(SettingsError, match="no model 'd20' here; there are d4, tiny"):
        bench_wan.run("d20")
    with pytest.raises(SettingsError, match="no arm 'int3'; there are fp32, bf16, int8, int4, int2, int2_topk, and"):
        bench_wan.run(arms="fp32,int3")


@pytest.mark.parametrize("line", [{"mbit_s": 0}, {"mbit_s": float("nan")}, {"rtt_ms": -1}])
def test_a_line_that_cannot_be_is_refused_before_any_work(line: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"--mbit-s .* and --rtt-ms .* are no line"):
        bench_wan.run(**line)


def test_a_model_that_works_on_disk_says_at_once_what_that_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = network_spaces.program
    monkeypatch.setattr(network_spaces, "program", lambda name: None if name.startswith("mkfs") else found(name))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    reason = bench_wan._why_not("d4")
    assert reason and ("mkfs.ext4 is not installed" in reason or "CAP_SYS_ADMIN" in reason or "nginx" in reason)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            "#!/bin/sh\necho 'mkfs.ext4: No space left' on device >&2\nexit 1\n",
            "ended with 1 and said: .*No space left",
        ),
        (None, "mkfs.ext4 is not installed"),
    ],
)
def test_a_space_that_cannot_be_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: str | None, text: str
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    program = tmp_path / "mkfs"
    program.write_text(make or "")
    program.chmod(0o755)
    monkeypatch.setattr(network_spaces, "program", lambda _: str(program) if make else None)
    with pytest.raises(SettingsError, match=text):
        Space("site", disk_gib=1)
    assert not [*(tmp_path / "temporary").iterdir()]


@needs_root
@pytest.mark.skipif(program(MAKES_DISKS) is None, reason=f"no {MAKES_DISKS}")
def test_a_space_on_disk_is_in_a_file_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    try:
        space = Space("site", disk_gib=1)
    except SettingsError as error:
        pytest.skip(f"no loop device here: {error}")
    with space:
        assert not [*tmp_path.iterdir()]
        assert "/dev/loop" in space.run(["cat", "/proc/mounts"]).splitlines()[0]


@pytest.fixture(scope="module")
def two() -> Iterator[tuple[Space, Space]]:
    with spaces("hub", "site") as (hub, site):
        link(hub, site, 1, 100)
        yield hub, site


@needs_root
def test_spaces_share_no_path(two: tuple[Space, Space]) -> None:
    hub, site = two
    assert common_paths({"hub": hub.pid, "site": site.pid}) == []
    site.write("/space/note", "from the site")
    assert site.read("/space/note") == "from the site"
    with pytest.raises(SettingsError, match="No such file"):
        hub.read("/space/note")
    with pytest.raises(SettingsError, match="Read-only"):
        site.run(["touch", "/usr/note"])


@needs_root
def test_processes_that_share_paths_are_found_out(two: tuple[Space, Space]) -> None:
    hub, _ = two
    with subprocess.Popen(hub.command(["sleep", "60"])) as other:
        inside = wait_until(lambda: psutil.Process(other.pid).children(), what="a second process")[0].pid
        found = common_paths({"one": hub.pid, "two": inside})
        other.kill()
    assert any(line.startswith("one:/ is two:/") for line in found) and any("'s .mark-" in line for line in found)


@needs_root
def test_a_line_joins_hub_and_site_alone(two: tuple[Space, Space]) -> None:
    hub, site = two
    assert "tbf" in site.run(["tc", "qdisc"]) and "rate 100Mbit" in hub.run(["tc", "qdisc"])
    assert site.run(["ping", "-c", "1", "-W", "5", "10.77.1.1"]) if _has("ping") else True
    with Space("apart") as apart:
        assert "10.77" not in apart.run(["ip", "addr"])


def _has(name: str) -> bool:
    return subprocess.run(["sh", "-c", f"command -v {name}"], capture_output=True).returncode == 0


@needs_root
def test_a_space_dies_with_its_maker() -> None:
    code = (
        "from curtail_pipeline.benchmarks.network_spaces import Space; import time; s = Space('x'); "
        "print(s.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        pid = int(maker.stdout.readline())
        assert is_alive(pid)
        maker.kill()
    wait_until(lambda: not is_alive(pid), 10, "the end of the space")


@needs_root
def test_what_a_killed_one_left_goes_with_the_next_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while its space was being made."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = tmp_path / "curtail-space-left"
    (left / "root").mkdir(parents=True)
    (left / "image").write_bytes(b"disk")
    (tmp_path / "else").mkdir()
    with Space("next"):
        assert [path.name for path in tmp_path.iterdir()] == ["else"]


def test_the_relay_delays_and_loses_nothing() -> None:
    class Echo(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(self.rfile.read())

    port = free_port()
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        route = f"127.0.0.1:{port}=127.0.0.1:{server.server_address[1]}"
        words = [sys.executable, "-m", "curtail_pipeline.benchmarks.delay_relay", "--delay-ms", "50", route]
        relay = subprocess.Popen(words)
        try:
            line = wait_until(lambda: _connected(port), 120, "the relay")
            sent, began = os.urandom(3 << 20), time.monotonic()
            with line:
                threading.Thread(target=lambda: (line.sendall(sent), line.shutdown(socket.SHUT_WR))).start()
                got = b"".join(iter(lambda: line.recv(1 << 16), b""))
            took = time.monotonic() - began
        finally:
            relay.kill()
            relay.wait()
            server.shutdown()
    assert got == sent and took >= 0.19, "a handshake, and the way there and back"


def _connected(port: int) -> socket.socket | None:
    line = socket.socket()
    if line.connect_ex(("127.0.0.1", port)) == 0:
        return line
    line.close()
    return None


def seen(begins: float, *parts: float, round: int = 0) -> list[Line]:
    """A trainer's round: fetch, train, first step, store, end."""
    trains, stepped, stores, ends = parts
    place = {"key": "ckpt-000001", "round": round, "pid": 7}
    return [
        Line(at=begins, phase="fetch", **place),  # type: ignore[arg-type]
        Line(at=trains, phase="compile", **place),  # type: ignore[arg-type]
        Line(at=stepped, phase="train", steps=1, **place),  # type: ignore[arg-type]
        Line(at=stores, phase="store", steps=3, **place),  # type: ignore[arg-type]
        Line(at=ends, pid=7),
    ]


def test_a_round_falls_into_its_parts() -> None:
    slow, fast = seen(103, 115, 116, 118, 131), seen(102, 110, 111, 113, 120)
    (stay,) = stays(slow).values()
    assert (stay.begins, stay.trains, stay.stepped, stay.stores, stay.ends) == (103, 115, 116, 118, 131)
    events = [
        Line(at=100, event="SegmentPlanned", key="ckpt-000001", members={"a": "", "b": ""}),
        Line(at=101, event="Submitted"),
        Line(at=135, event="RoundMerged", round=0, steps={"a": 3, "b": 3}, training_s=3, moving_s=28, merging_s=2),
    ]
    found = figures(events, {"a": slow, "b": fast}, "a")
    assert found["round_s"] == 33 and found["nontraining_share"] == round(1 - 3 / 33, 3)
    assert found["round_parts_s"] == {"fetch": 12, "train": 3, "store": 13, "merge": 2, "messages": 3}
    assert found["join_s"] == 4
    assert found["join_parts_s"] == {"submit": 1, "deliver": 2, "download": 12, "first_step": 1}
    assert (found["rounds"], found["site_rounds"]) == (1, 2)
    assert figures(events, {"a": slow[:2], "b": fast}, "b")["round_s"] is None, "not every part was seen"


def test_the_arms_send_and_fetch_by_their_codecs() -> None:
    def exchange(arm: wan_job.Arm) -> tuple[str, str, bool, int]:
        found = parse_experiment(wan_job.experiment("tiny", arm, ["east"], "trace.csv"), "wan").rounds
        return found.upload_codec, found.download_codec, found.overlap, found.fragments

    asked = wan_job.arms_of("fp32, int2_topk,fp32,int8+overlap,int8+fragments,int2+fragments+overlap")
    assert [arm.name for arm in asked] == [
        "fp32", "int2_topk", "int8+overlap", "int8+fragments", "int2+overlap+fragments",
    ]  # fmt: skip
    assert [exchange(arm) for arm in asked] == [
        ("fp32", "fp32", False, 1), ("int2_topk", "int2", False, 1), ("int8", "int8", True, 1),
        ("int8", "int8", False, 4), ("int2", "int2", True, 4),
    ]  # fmt: skip
    for strange in ("int3", "fp32+overlap", "fp32+fragments", "int8+fragments+fragments"):
        with pytest.raises(SettingsError, match=f"no arm '{re.escape(strange)}'; there are fp32, bf16"):
            wan_job.arms_of(strange)


@pytest.mark.long
def test_each_arm_is_projected_to_a_model_of_561_million_parameters() -> None:
    found = bench_wan._projected(wan_job.arms_of("int8,int8+overlap,int8+fragments"), "7M")
    assert list(found) == ["int8", "int8+overlap", "int8+fragments"]
    alone, beside = 8 * 2 * 570e6 / 100e6 / 600, found["int8+overlap"]
    assert alone < found["int8"] < alone + 0.2, "the line's own time, both ways, and what encodes, merges and decodes"
    part = alone * (11 / 4 + 1) / 12
    assert part < found["int8+fragments"] < part + 0.2
    assert isinstance(beside, float) and 0 < beside < 0.1 < found["int8"]


def test_sites_without_credentials_are_named() -> None:
    assert wan_job.linked_of("north, east,north") == ("north", "east") and wan_job.linked_of("") == ()
    with pytest.raises(SettingsError, match="no site 'west'; there are north, south, east"):
        wan_job.linked_of("north,west")


@pytest.mark.parametrize("arm", ["fp32", "int8+overlap", "int8+fragments"])
@pytest.mark.parametrize("model", wan_job.MODELS)
def test_its_job_has_a_join_a_leave_and_a_pause(tmp_path: Path, model: str, arm: str) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(wan_job.trace())
    (asked,) = wan_job.arms_of(arm)
    parts = planned(wan_job.experiment(model, asked, ["east"], str(trace)), tmp_path / "home")
    members = [part.members if isinstance(part, SegmentPlan) else () for part in parts]
    assert members == [
        (), ("north", "south"), ("north", "south", "east"), ("south", "east"), (), ("south", "east"), (),
    ]  # fmt: skip
    rounds = [len(part.rounds) for part in parts if isinstance(part, SegmentPlan)]
    assert rounds == ([4, 4, 2, 3] if asked.parts > 1 else [1, 1, 1, 1]), "as short as can be"
