"""Settings of sites, window rules, policies and rounds: all that scheduling depends on."""

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from curtail_pipeline.settings.overheads import Overheads
from curtail_pipeline.settings.provisioner_settings import NoProvisioner, ProvisionerSettings
from curtail_pipeline.settings.section import Name, Section

PowerState = Literal["training", "idle", "start_up", "transfer", "failed"]
"""What a site draws power for. By the wall clock, `transfer` is the rest of a round beside its steps, and `failed` is
training that came to nothing."""

MOST_KW_PER_DEVICE: Final = 10.0
"""IT power above this is a wrong unit or a wrong count. The hungriest accelerator of 2026, NVIDIA's B300, takes 1.4 kW
(https://huggingface.co/hardware/b300), and a whole server of CPUs, which counts as one device, a few kW."""
MOST_BATTERY: Final = 500.0
"""Times its site's power: a battery's that is larger is in W."""
MOST_PUE: Final = 4.0
"""The average of the industry was 2.5 in 2007 and 1.58 in 2023 (Uptime Institute, Global Data Center Survey)."""

ROUND_FILES: Final = ("model", "outer", "delta", "inner")
"""What a round's merge leaves beside the sites' updates, without the ending: no site can have one of these names."""


class Battery(Section):
    """A battery beside a site: it fills up on surplus on-site power, and from the grid while that is curtailed."""

    capacity_kwh: float = Field(gt=0)
    charge_kw: float = Field(gt=0)
    """Most power it takes."""
    discharge_kw: float = Field(gt=0)
    """Most power it gives."""
    charge_efficiency: float = Field(default=0.95, gt=0, le=1)
    """Share of the power taken that is stored. 0.95 each way is a round trip of 90 %, usual for lithium-ion."""
    discharge_efficiency: float = Field(default=0.95, gt=0, le=1)
    """Share of the power drawn from the store that is given."""
    initial_share: float = Field(default=0.0, ge=0, le=1)
    """How full it is at the start; what it holds then counts as free of CO2."""
    reserve_share: float = Field(default=0.0, ge=0, lt=1)
    """It is never discharged below this; of all of it nothing would ever be used."""


class OnSiteGeneration(Section):
    """Generation behind the site's meter, free of CO2; what neither site nor battery takes is lost."""

    path: str
    """A CSV or Parquet file with the columns time (UTC) and kw; a value holds until the next one."""
    scale: float = Field(default=1.0, gt=0)
    """Multiplies the file's values, e.g. from one panel to a field of them."""


class MeterSettings(Section):
    """What of a site's power is measured by its own counters, by the wall clock; the rest is modelled."""

    measured: bool = True
    """Whether its trainer reads the counters that its machine has: GPUs with the extra `meter`, RAPL without."""
    host_share: float | None = Field(default=None, gt=0, le=1)
    """Share of the processors' and memory's energy that is the site's. All of it where the site has GPUs, else its
    `threads` over the machine's processors, when not given."""
    host_kw: float | None = Field(default=None, ge=0)
    """Power of processors and memory beside GPUs, in place of RAPL."""


class FootprintSettings(Section):
    """What a site takes beside energy; a figure that nobody has given is left out of the report."""

    embodied_kg: float | None = Field(default=None, ge=0)
    """CO2 of making all of its hardware."""
    lifetime_years: float = Field(default=4.0, gt=0)
    """Over which it is spread. 4 is what the worked examples of the Software Carbon Intensity take."""
    water_l_per_kwh: float | None = Field(default=None, ge=0)
    """Water usage effectiveness (WUE): litres on site per kWh of IT energy."""


class Link(Section):
    """A site's connection to where rounds are merged."""

    up_mbit_s: float = Field(gt=0)
    down_mbit_s: float = Field(gt=0)
    rtt_ms: float = Field(default=0.0, ge=0)
    """Round trip."""

    def receive_s(self, megabytes: float) -> float:
        """Seconds to receive so many megabytes."""
        return 8 * megabytes / self.down_mbit_s + self.rtt_ms / 1_000

    def send_s(self, megabytes: float) -> float:
        """Seconds to send so many megabytes."""
        return 8 * megabytes / self.up_mbit_s + self.rtt_ms / 1_000


SITE_NAME = r"^[A-Za-z0-9_-]{1,64}$"


class Site(Section):
    """A GPU cluster in a grid region."""

    name: str = Field(pattern=SITE_NAME)
    region: Name = Field(min_length=1)
    training_kw: float = Field(gt=0)
    idle_kw: float = Field(ge=0)
    start_up_kw: float | None = Field(default=None, ge=0)
    """Power while provisioning; idle power when not given."""
    pue: float = Field(default=1.0, ge=1.0)
    """Power usage effectiveness: facility power over IT power."""
    devices: int = Field(default=1, ge=1)
    """Devices that the site's power is of and that its trainer works on, one process each, from `device` on. They must
    be there, and share the sequences of a step evenly. On a CPU they are processes of `threads` threads each."""
    parallel: Literal["auto", "ddp", "fsdp"] = "auto"
    """How several devices hold a model: each the whole of it (DDP), or a share (FSDP2); with `auto` the whole where it
    fits. Loss and weights differ by rounding."""
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    """`cpu`, or a CUDA device such as `cuda:0`."""
    threads: int = Field(default=1, ge=1)
    """Torch threads of the resident trainer on CPU."""
    steps_per_s: float = Field(gt=0)
    """Optimiser steps per second that headless virtual time assumes."""
    share: float | None = Field(default=None, gt=0)
    """Share of the corpus; equal shares when no site gives one."""
    overheads: Overheads | None = None
    """Overrides the experiment's `overheads` as a whole."""
    battery: Battery | None = None
    on_site: OnSiteGeneration | None = None
    meter: MeterSettings = MeterSettings()
    footprint: FootprintSettings = FootprintSettings()
    link: Link | None = None
    """Its transfers are charged beside the overheads; without one they are part of what those measured."""
    provisioner: ProvisionerSettings = NoProvisioner()
    """What starts and stops it with the live and the replayed clock."""

    @model_validator(mode="after")
    def _plausible(self) -> Self:
        if self.name in ROUND_FILES:
            raise ValueError(f"no site can be called {self.name!r}, as a file of every round is; rename it")
        most = MOST_KW_PER_DEVICE * self.devices
        for name in ("training_kw", "idle_kw", "start_up_kw"):
            power = getattr(self, name)
            if power is not None and power > most:
                raise ValueError(
                    f"site {self.name!r} has {name} {power:g} for {self.devices} device(s), and no device takes more "
                    f"than {MOST_KW_PER_DEVICE:g} kW; give kW, not W, or raise devices"
                )
        for name in ("charge_kw", "discharge_kw"):
            if self.battery is not None and getattr(self.battery, name) > MOST_BATTERY * self.training_kw * self.pue:
                raise ValueError(
                    f"site {self.name!r} takes {self.training_kw * self.pue:g} kW and its battery has {name} "
                    f"{getattr(self.battery, name):g}; give kW and kWh, not W and Wh"
                )
        if self.pue > MOST_PUE:
            raise ValueError(
                f"site {self.name!r} has pue {self.pue:g}, and no data centre is above {MOST_PUE:g}; give facility "
                "power over IT power, 1.58 on average"
            )
        return self


def power_kw(site: Site, state: PowerState) -> float:
    """Facility power: IT power of that state times PUE. What was lost trained until then; transfers are idle time."""
    if state in ("training", "failed"):
        return site.training_kw * site.pue
    if state == "start_up" and site.start_up_kw is not None:
        return site.start_up_kw * site.pue
    return site.idle_kw * site.pue
