"""The device of a site, and how torch computes on it."""

import torch

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.settings.sites import Site


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
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise TrainingError(
            f"sites: device {site.device!r} of {site.name} is not there ({torch.cuda.device_count()} CUDA devices); "
            "use one that exists, or cpu"
        )
    return device


def make_deterministic(threads: int) -> None:
    """Have this process compute the same bits from the same input, on so many threads."""
    torch.use_deterministic_algorithms(True)
    # Filling uninitialised memory is a debugging aid that costs a pass over every new tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
