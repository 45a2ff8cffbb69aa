"""The device of a site, and how torch computes on it."""

import os
from collections.abc import Sequence
from contextlib import suppress

import torch

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.settings.training_settings import TrainingSettings


def device_of(site: Site) -> torch.device:
    """The device that a site trains on.

    Raises:
        TrainingError: torch does not know it, or it is not there.
    """
    try:
        device = torch.device(site.device)
    except RuntimeError as error:
        raise TrainingError(
            f"sites: device {site.device!r} of {site.name} is not one torch knows; use cpu or cuda:0"
        ) from error
    if device.type not in {"cpu", "cuda"}:
        raise TrainingError(f"sites: device {site.device!r} of {site.name} is not supported; use cpu or cuda:0")
    if device.type == "cuda":
        there, first = torch.cuda.device_count(), device.index or 0
        if first + site.devices > there:
            many = f" with devices {site.devices}" if site.devices > 1 else ""
            raise TrainingError(
                f"sites: device {site.device!r} of {site.name}{many} is not there ({there} CUDA devices); "
                "lower devices, use a device that exists, or cpu"
            )
    return device


def devices_of(site: Site, sequences: int) -> list[torch.device]:
    """The devices that a site trains on; the CPU as often as it has processes there.

    Args:
        sequences: of an optimiser step.

    Raises:
        TrainingError: one is not there, or they cannot share the sequences out evenly.
    """
    first, there = device_of(site), os.cpu_count() or 1
    if sequences % site.devices:
        raise TrainingError(
            f"sites: devices {site.devices} of {site.name} do not divide the {sequences} sequences of a step "
            "(training.total_batch_tokens / sequence_length); choose numbers that do"
        )
    if site.devices == 1 or first.type == "cpu":
        if site.devices > there:
            raise TrainingError(
                f"sites: devices {site.devices} of {site.name} are more processes than this machine has processors "
                f"({there}); lower devices"
            )
        return [first] * site.devices
    return [torch.device("cuda", (first.index or 0) + number) for number in range(site.devices)]


def evaluation_device(sites: Sequence[Site]) -> torch.device:
    """The first of the sites' GPUs that this machine has, or else the CPU."""
    if torch.cuda.is_available():
        for site in sites:
            with suppress(TrainingError):  # another machine's
                if (device := device_of(site)).type == "cuda":
                    return device
    return torch.device("cpu")


def set_computing(threads: int, settings: TrainingSettings) -> None:
    """Have this process compute on so many threads, as exactly and as repeatably as `deterministic` and `tf32` say."""
    torch.use_deterministic_algorithms(settings.deterministic)
    # Filling uninitialised memory is a debugging aid that costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "tf32" if settings.tf32 else "ieee"
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
