"""Energy that a site's own counters measure: its GPUs through zeus, CPUs and memory through RAPL or by a setting.

Counters count joules since some start; energy is the difference of two readings. RAPL is read from sysfs: zeus watches
its counters wrap around from a process of its own, which outlives a trainer that is killed, while a trainer reads them
every few seconds anyway.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from pydantic import Field

from curtail_pipeline.errors import MeterError
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.records import Record
from curtail_pipeline.times import HOUR, SECOND

log = logging.getLogger(__name__)

RAPL: Final = Path("/sys/class/powercap")
SAMPLE_S: Final = 10.0
"""A RAPL counter of 262 kJ, the usual range, wraps within 10 minutes at 437 W."""
_JOULES_PER_KWH = 3.6e6


class Drawn(Record):
    """IT energy that was measured, without the PUE."""

    kwh: float = Field(ge=0, allow_inf_nan=False)
    source: str
    """Which counters it is the sum of."""


class Counter(Protocol):
    """Joules since some start."""

    @property
    def name(self) -> str: ...

    @property
    def range_j(self) -> float | None:
        """Where it begins again at 0; None where only a reset of the device does that."""

    def read_j(self) -> float:
        """The count now.

        Raises:
            MeterError: it cannot be read now.
        """


class Gpus(Protocol):
    """The GPUs that a trainer sees, numbered as `cuda:0` and so on are."""

    def __len__(self) -> int: ...

    def counts(self, index: int) -> bool:
        """Whether it has an energy counter.

        Raises:
            MeterError: it cannot be asked now.
        """

    def read_j(self, index: int) -> float:
        """Of the whole board, its memory included, since the driver was loaded.

        Raises:
            MeterError: it cannot be read now.
        """


class ZeusGpus:
    """GPUs of NVIDIA or AMD through zeus, which heeds `CUDA_VISIBLE_DEVICES`.

    Raises:
        MeterError: zeus is not installed, or finds none.
    """

    def __init__(self) -> None:
        try:
            from zeus.device import get_gpus
            from zeus.exception import ZeusBaseError
        except ImportError as error:
            raise MeterError("zeus is not installed; pip install 'curtail_pipeline[meter]'") from error
        self._error = ZeusBaseError
        try:
            self._gpus = get_gpus()
        except ZeusBaseError as error:
            raise MeterError(f"{str(error).rstrip('.')}; see whether nvidia-smi finds the GPU") from error

    def __len__(self) -> int:
        return len(self._gpus)

    def counts(self, index: int) -> bool:
        try:
            found: bool = self._gpus.supports_get_total_energy_consumption(index)
        except self._error as error:
            raise MeterError(f"GPU {index} does not say whether it counts energy ({error})") from error
        return found

    def read_j(self, index: int) -> float:
        try:
            millijoules: int = self._gpus.get_total_energy_consumption(index)
        except self._error as error:
            raise MeterError(f"the energy counter of GPU {index} cannot be read ({error})") from error
        return millijoules / 1_000


@dataclass(frozen=True)
class GpuCounter:
    """The energy counter of one GPU."""

    gpus: Gpus
    index: int
    range_j: float | None = None

    @property
    def name(self) -> str:
        return f"GPU {self.index}"

    def read_j(self) -> float:
        return self.gpus.read_j(self.index)


@dataclass(frozen=True)
class RaplCounter:
    """One power zone of the processor: a package, or its memory."""

    folder: Path
    name: str
    range_j: float | None

    def read_j(self) -> float:
        return _read_j(self.folder / "energy_uj")


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except PermissionError as error:
        raise MeterError(
            f"{file} may be read by root only; let the trainer's user read it, or give sites[].meter.host_kw"
        ) from error
    except (OSError, ValueError) as error:
        raise MeterError(f"{file} cannot be read ({error})") from error


def _read_j(file: Path) -> float:
    text = _read(file)
    if not (text.isascii() and text.isdecimal()):
        raise MeterError(f"{file} cannot be read ({text!r} is no number of microjoules)")
    return int(text) / SECOND


def rapl_counters(root: Path = RAPL) -> list[RaplCounter]:
    """Packages, and their memory where it is a zone beside them. `psys` is the whole platform and would count twice.

    Raises:
        MeterError: a zone does not say what it is, or where its counter begins again.
    """
    found = []
    for zone in sorted(root.glob("intel-rapl:*")):
        name = _read(zone / "name") if (zone / "name").is_file() else ""
        if name.startswith("package") or name == "dram":
            limit = zone / "max_energy_range_uj"
            range_j = _read_j(limit)
            if not range_j:
                raise MeterError(f"{limit} is 0, and its counter cannot wrap around there")
            found.append(RaplCounter(zone, f"{zone.name} {name}", range_j))
    return found


def gpu_counters(site: Site, gpus: Gpus) -> list[GpuCounter]:
    """Of the site's devices, from its own index on.

    Raises:
        MeterError: one is not there, or counts no energy.
    """
    first = int(site.device.partition(":")[2] or 0)
    for index in range(first, first + site.devices):
        if index >= len(gpus):
            raise MeterError(f"site {site.name!r} has GPU {index}, and there are {len(gpus)}")
        if not gpus.counts(index):
            raise MeterError(f"GPU {index} of site {site.name!r} has no energy counter; Volta is the first that has")
    return [GpuCounter(gpus, index) for index in range(first, first + site.devices)]


@dataclass
class _Account:
    """One counter between two readings."""

    counter: Counter
    share: float
    last: float = 0.0
    joules: float = 0.0

    def begin(self) -> None:
        self.last, self.joules = self.counter.read_j(), 0.0

    def sample(self) -> None:
        now = self.counter.read_j()
        if now < self.last:
            if self.counter.range_j is None:
                raise MeterError(f"the energy counter of {self.counter.name} was reset")
            self.joules += self.counter.range_j
        self.joules += now - self.last
        self.last = now


@dataclass
class Meter:
    """What one site draws while it trains; without counters it measures nothing."""

    source: str
    accounts: Sequence[_Account] = ()
    host_kw: float = 0.0
    """Of processor and memory, by the site's settings."""
    clock: Callable[[], float] = time.monotonic
    drawing_kw: float | None = field(default=None, init=False)
    """IT power between the last two readings; None before the second and without counters."""
    _begun: float | None = field(default=None, init=False)
    _sampled: float = field(default=0.0, init=False)
    _said: bool = field(default=False, init=False)

    def begin(self) -> None:
        """Count from now on."""
        self._begun = self._sampled = self.clock()
        self.drawing_kw = None
        self._each(_Account.begin)

    def sample(self) -> None:
        """Call it often: it reads the counters every `SAMPLE_S`, so that none wraps around twice unseen."""
        if self._begun is not None and self.clock() - self._sampled >= SAMPLE_S:
            joules, at = self._joules(), self._sampled
            self._each(_Account.sample)
            hours = (self._sampled - at) * SECOND / HOUR
            counted = self.accounts and self._begun is not None
            self.drawing_kw = (self._joules() - joules) / _JOULES_PER_KWH / hours + self.host_kw if counted else None

    def end(self) -> Drawn | None:
        """IT energy since `begin`; None where there are no counters, or one was reset or could not be read."""
        self._each(_Account.sample)
        begun, self._begun = self._begun, None
        if begun is None or not self.accounts:
            return None
        hours = (self.clock() - begun) * SECOND / HOUR
        return Drawn(kwh=self._joules() / _JOULES_PER_KWH + self.host_kw * hours, source=self.source)

    def _joules(self) -> float:
        """Since `begin`."""
        return sum(account.share * account.joules for account in self.accounts)

    def _each(self, do: Callable[[_Account], None]) -> None:
        if self._begun is None:
            return
        self._sampled = self.clock()
        try:
            for account in self.accounts:
                do(account)
        except MeterError as error:
            self._begun = None
            if not self._said:
                log.warning("energy is modelled, not measured, where a counter fails: %s", error)
            self._said = True


def make_meter(
    site: Site,
    cpus: int,
    *,
    rapl: Path = RAPL,
    gpus: Callable[[], Gpus] = ZeusGpus,
    clock: Callable[[], float] = time.monotonic,
) -> Meter:
    """The meter of a site on this machine. What it cannot measure it says once, in the log.

    Args:
        cpus: of this machine.
        gpus: finds them.
    """
    if not site.meter.measured:
        return Meter("none")
    accounts, parts, host_kw = list[_Account](), list[str](), 0.0
    try:
        on_gpus = site.device.startswith("cuda")
        if on_gpus:
            accounts += [_Account(counter, 1.0) for counter in gpu_counters(site, gpus())]
            parts.append("GPU counters")
        share = site.meter.host_share
        if share is None:
            share = 1.0 if on_gpus else min(1.0, site.threads / cpus)
        told = site.meter.host_kw if on_gpus else None
        zones = [] if told is not None else rapl_counters(rapl)
        for zone in zones:
            zone.read_j()
        if zones:
            accounts += [_Account(zone, share) for zone in zones]
            parts.append("RAPL" if share == 1 else f"{share:.0%} of RAPL")
        elif told is not None:
            host_kw = told
            parts.append(f"{host_kw:g} kW for the host")
        elif on_gpus:
            raise MeterError("there is no RAPL counter for processor and memory; give sites[].meter.host_kw")
        else:
            raise MeterError("there is no RAPL counter")
    except MeterError as error:
        log.warning("energy of %s is modelled by the site's settings, not measured: %s", site.name, error)
        return Meter("none")
    log.info("energy of %s is measured: %s", site.name, ", ".join(parts))
    return Meter(", ".join(parts), accounts, host_kw, clock)
