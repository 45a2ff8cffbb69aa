"""Power now: NVIDIA's counters where a site's devices have them, otherwise the constants of the site's settings."""

from types import TracebackType
from typing import Any, Literal, Protocol, Self

from curtail_pipeline.settings.sites import Site

State = Literal["training", "idle", "start_up"]


class Meter(Protocol):
    """Facility power of a site, PUE included."""

    source: str

    def read_kw(self, state: State) -> float: ...


class ConstantMeter:
    """The power that the site's settings declare for a state."""

    source = "settings"

    def __init__(self, site: Site) -> None:
        idle = site.idle_kw if site.start_up_kw is None else site.start_up_kw
        self._kw = {"training": site.training_kw, "idle": site.idle_kw, "start_up": idle}
        self._pue = site.pue

    def read_kw(self, state: State) -> float:
        return self._kw[state] * self._pue


class NvmlMeter:
    """Board power of the first `site.devices` GPUs, summed, times PUE. CPUs, memory and network are not in it."""

    source = "nvml"

    def __init__(self, site: Site, nvml: Any) -> None:
        """`nvml`: the initialised `pynvml` module.

        Raises:
            pynvml.NVMLError: fewer devices than the site declares, or one that reports no power.
        """
        self._nvml, self._pue = nvml, site.pue
        self._devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(site.devices)]
        self.read_kw()

    def read_kw(self, state: State = "training") -> float:
        """What the devices draw now, whatever the state."""
        milliwatts = sum(self._nvml.nvmlDeviceGetPowerUsage(device) for device in self._devices)
        return float(milliwatts) / 1e6 * self._pue

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._nvml.nvmlShutdown()


def make_meter(site: Site) -> Meter:
    """NVML when the site trains on CUDA devices that report their power; the settings otherwise."""
    if not site.device.startswith("cuda"):
        return ConstantMeter(site)
    import pynvml

    try:
        pynvml.nvmlInit()
        return NvmlMeter(site, pynvml)
    except pynvml.NVMLError:
        return ConstantMeter(site)
