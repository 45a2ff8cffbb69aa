"""Counters of energy: RAPL from a directory like that of Linux, GPUs from an object like NVML."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from curtail_pipeline.emissions.meter import SAMPLE_S, Meter, ZeusGpus, make_meter, rapl_counters
from curtail_pipeline.errors import MeterError
from curtail_pipeline.settings.sites import Site

RANGE_UJ = 1_000_000_000


class Machine:
    """A processor with two packages and memory, GPUs, and a clock; all stand still until they are told."""

    def __init__(self, root: Path, gpus: int = 0) -> None:
        self.root, self.now, self.boards = root, 0.0, [0.0] * gpus
        for zone, name in (
            ("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:0:1", "dram"),
            ("intel-rapl:1", "package-1"), ("intel-rapl:2", "psys"),
        ):  # fmt: skip
            (root / zone).mkdir(parents=True)
            (root / zone / "name").write_text(f"{name}\n")
            (root / zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
            self.count(zone, RANGE_UJ // 2)

    def count(self, zone: str, microjoules: int) -> None:
        (self.root / zone / "energy_uj").write_text(f"{microjoules}\n")

    def add(self, zone: str, joules: float) -> None:
        before = int((self.root / zone / "energy_uj").read_text())
        self.count(zone, int(before + joules * 1e6) % RANGE_UJ)

    def __len__(self) -> int:
        return len(self.boards)

    def counts(self, index: int) -> bool:
        return self.boards[index] >= 0

    def read_j(self, index: int) -> float:
        if self.boards[index] == float("inf"):
            raise MeterError(f"the energy counter of GPU {index} cannot be read (lost)")
        return self.boards[index]

    def meter(self, site: Site, cpus: int = 4) -> Meter:
        return make_meter(site, cpus, rapl=self.root, gpus=lambda: self, clock=lambda: self.now)


def site(**changes: Any) -> Site:
    return Site.model_validate(
        {"name": "A", "region": "R", "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 1.0, **changes}
    )


def joules(meter: Meter) -> float | None:
    drawn = meter.end()
    return None if drawn is None else drawn.kwh * 3.6e6


def test_a_site_of_processors_takes_its_threads_share_of_packages_and_memory(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter(site(threads=2))
    meter.begin()
    for zone, energy in (("intel-rapl:0", 100), ("intel-rapl:0:1", 20), ("intel-rapl:1", 40), ("intel-rapl:2", 999)):
        machine.add(zone, energy)
    machine.add("intel-rapl:0:0", 77)  # cores: in their package already
    assert joules(meter) == pytest.approx(160 / 2)
    assert meter.source == "50% of RAPL"
    assert [counter.name for counter in rapl_counters(tmp_path)] == [
        "intel-rapl:0 package-0", "intel-rapl:0:1 dram", "intel-rapl:1 package-1",
    ]  # fmt: skip


def test_counters_that_wrap_around_go_on(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter(site(meter={"host_share": 1.0}))
    meter.begin()
    assert meter.drawing_kw is None
    for _ in range(5):  # 3,000 J through a counter of 1,000 J
        machine.add("intel-rapl:0", 600)
        machine.now += SAMPLE_S
        meter.sample()
        assert meter.drawing_kw == pytest.approx(0.6 / SAMPLE_S)
    assert joules(meter) == pytest.approx(3_000)
    meter.begin()
    machine.add("intel-rapl:1", 1)
    assert joules(meter) == pytest.approx(1), "each round begins anew"


def test_a_sample_is_taken_no_more_often_than_needed(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    meter = machine.meter(site(meter={"host_share": 1.0}))
    meter.begin()
    machine.add("intel-rapl:0", 900)
    meter.sample()
    machine.add("intel-rapl:0", 900)
    assert joules(meter) == pytest.approx(800), "1,800 J look like 800 J: nobody read in between"


@pytest.mark.parametrize(("device", "devices", "expected"), [("cuda", 1, 10), ("cuda:2", 1, 30), ("cuda:1", 2, 50)])
def test_the_sites_own_devices_count(tmp_path: Path, device: str, devices: int, expected: float) -> None:
    machine = Machine(tmp_path, gpus=4)
    meter = machine.meter(site(device=device, devices=devices, meter={"host_kw": 0.3}))
    meter.begin()
    machine.boards = [10.0, 20.0, 30.0, 40.0]
    machine.now = 100.0
    assert joules(meter) == pytest.approx(expected + 0.3e3 * 100), "the host by the setting, without RAPL"
    assert meter.source == "GPU counters, 0.3 kW for the host"


def test_the_host_of_gpus_is_all_theirs(tmp_path: Path) -> None:
    machine = Machine(tmp_path, gpus=1)
    meter = machine.meter(site(device="cuda:0"))
    meter.begin()
    machine.boards[0] += 5
    machine.add("intel-rapl:1", 7)
    assert (joules(meter), meter.source) == (pytest.approx(12), "GPU counters, RAPL")


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda machine: machine.boards.__setitem__(0, 1.0), "GPU 0 was reset"),
        (lambda machine: machine.boards.__setitem__(0, float("inf")), "GPU 0 cannot be read"),
        (
            lambda machine: (machine.root / "intel-rapl:0" / "energy_uj").unlink(missing_ok=True),
            "energy_uj cannot be read",
        ),
    ],
)
def test_a_round_in_which_a_counter_fails_is_modelled_and_it_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, broken: Callable[[Machine], None], said: str
) -> None:
    machine = Machine(tmp_path, gpus=1)
    machine.boards[0] = 50.0
    meter = machine.meter(site(device="cuda:0"))
    for _ in range(2):
        meter.begin()
        broken(machine)
        assert meter.end() is None
        machine.boards[0] += 50
        if said.endswith("cannot be read"):
            machine.boards[0] = 50.0
    assert sum(said in record.message for record in caplog.records) == 1
    machine.boards[0], _ = 7.0, machine.count("intel-rapl:0", 1)
    meter.begin()
    machine.boards[0] = 9.0
    assert joules(meter) == pytest.approx(2), "the next round is measured again"


@pytest.mark.parametrize(
    ("changes", "gpus", "rapl", "said"),
    [
        ({}, 0, False, "there is no RAPL counter"),
        ({"device": "cuda:1"}, 1, True, "has GPU 1, and there are 1"),
        ({"device": "cuda:0"}, 1, False, "give sites[].meter.host_kw"),
    ],
)
def test_a_machine_without_counters_models_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], gpus: int, rapl: bool, said: str
) -> None:
    machine = Machine(tmp_path / "full", gpus)
    if not rapl:
        machine.root = tmp_path / "none"
    meter = machine.meter(site(**changes))
    for _ in range(3):
        meter.begin()
        meter.sample()
        assert meter.end() is None
    assert [said in record.message for record in caplog.records if record.levelno >= logging.WARNING] == [True]


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("max_energy_range_uj", None, "max_energy_range_uj cannot be read (["),
        ("max_energy_range_uj", b"unknown\n", "'unknown' is no number of microjoules"),
        ("max_energy_range_uj", b"0\n", "max_energy_range_uj is 0"),
        ("energy_uj", b"", "'' is no number of microjoules"),
        ("name", b"\xff\xfe", "name cannot be read ('utf-8'"),
    ],
)
def test_a_power_zone_that_lacks_a_figure_is_modelled_and_named_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, content: bytes | None, said: str
) -> None:
    machine = Machine(tmp_path)
    broken = tmp_path / "intel-rapl:1" / file
    broken.unlink() if content is None else broken.write_bytes(content)
    meter = machine.meter(site())
    meter.begin()
    assert meter.end() is None
    (record,) = caplog.records
    assert "energy of A is modelled by the site's settings, not measured: " in record.message
    assert str(broken) in record.message and said in record.message and "\n" not in record.message


def test_measuring_can_be_turned_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    meter = Machine(tmp_path).meter(site(meter={"measured": False}))
    meter.begin()
    assert meter.end() is None and not caplog.records


def test_gpus_are_read_through_zeus_by_their_visible_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real zeus on an NVML that is made up."""
    pytest.importorskip("zeus", reason="the extra `meter` is not installed")
    import pynvml
    from zeus.device import gpu

    def lost(handle: int) -> int:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

    for name, fake in {
        "nvmlInit": lambda: None,
        "nvmlShutdown": lambda: None,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetC2cModeInfoV": lost,
        "nvmlDeviceGetArchitecture": lambda handle: pynvml.NVML_DEVICE_ARCH_VOLTA - 1 + handle,
        "nvmlDeviceGetTotalEnergyConsumption": lambda handle: 1_000 * handle + 1,
    }.items():
        monkeypatch.setattr(pynvml, name, fake)
    monkeypatch.setattr(gpu, "nvml_is_available", lambda: True)
    monkeypatch.setattr(gpu, "_gpus", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,0")
    gpus = ZeusGpus()
    assert len(gpus) == 2 and gpus.read_j(0) == pytest.approx(3.001) and gpus.read_j(1) == pytest.approx(0.001)
    assert gpus.counts(0) and not gpus.counts(1), "older than Volta"

    monkeypatch.setattr(pynvml, "nvmlDeviceGetTotalEnergyConsumption", lost)
    with pytest.raises(MeterError, match="GPU 0 cannot be read"):
        gpus.read_j(0)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetArchitecture", lost)
    monkeypatch.setattr(gpu, "_gpus", None)
    with pytest.raises(MeterError, match="GPU 0 does not say whether it counts energy"):
        ZeusGpus().counts(0)
