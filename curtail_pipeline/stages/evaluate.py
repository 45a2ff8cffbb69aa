"""Held-out loss of a committed checkpoint, kept in the store beside the checkpoints."""

import logging
from pathlib import Path

from curtail_pipeline.corpus.batches import HeldoutReader
from curtail_pipeline.stages.model_worker import ModelWorker, Wanted
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.training.heldout_loss import Evaluation, evaluate

log = logging.getLogger(__name__)


def evaluation_key(key: str) -> str:
    return f"evaluations/{key}.json"


def evaluate_checkpoint(project: Project, key: str) -> Evaluation:
    """Evaluate a checkpoint on the held-out shard and store the result.

    Raises:
        StoreError: there is no such checkpoint, or it is corrupt.
    """
    project.checkpoints.check(key)
    found = evaluated(project, project.checkpoints, key)
    project.store.write_record(evaluation_key(key), found)
    return found


def evaluated(project: Project, checkpoints: Checkpoints, key: str) -> Evaluation:
    """Held-out loss of a checkpoint, a branch's perhaps; nothing is stored.

    By the worker that the environment names, else in this process.

    Raises:
        TrainingError: the worker does not answer, or could not.
    """
    worker = ModelWorker.of_environment()
    if worker is not None:
        return worker.evaluate(Wanted(store=checkpoints.store.uri, key=key))
    return evaluate_here(project, checkpoints, key)


def evaluate_here(project: Project, checkpoints: Checkpoints, key: str) -> Evaluation:
    """As `evaluated`, in this process, which needs torch."""
    with checkpoints.folder(key) as folder:
        return _evaluate_folder(project, folder)


def _evaluate_folder(project: Project, folder: Path) -> Evaluation:
    """Held-out loss of a model folder; nothing is stored.

    It is measured on a GPU that one of the sites trains on, where this machine has one with room beside the training,
    and on one thread of the CPU otherwise.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings = project.experiment.training
    reader = HeldoutReader(project.store, settings.sequence_length)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # short batches; more threads only wait for each other on a busy machine
    try:
        return evaluate(
            folder,
            reader,
            max_sequences=settings.evaluation_sequences,
            batch_sequences=settings.device_batch_sequences,
            device=_device(project, folder),
        )
    finally:
        torch.set_num_threads(threads)


def _device(project: Project, folder: Path) -> str:
    from curtail_pipeline.training import memory
    from curtail_pipeline.training.devices import evaluation_device
    from curtail_pipeline.training.presets import read_config

    device, settings = evaluation_device(project.experiment.sites), project.experiment.training
    if device.type == "cpu":
        return "cpu"
    path = folder / "config.json"
    config = read_config(path.read_bytes(), str(path))
    needed = memory.evaluation_bytes(config, settings, device.type, settings.device_batch_sequences)
    room = memory.capacity(device)
    if needed > room:
        log.warning(
            "held-out loss on the CPU: it takes %.1f GiB and %s has %.1f GiB free; lower device_batch_sequences",
            needed / memory.GIB,
            device,
            room / memory.GIB,
        )
        return "cpu"
    return str(device)


def stored_loss(project: Project, key: str) -> float | None:
    """The held-out loss that was stored for a checkpoint."""
    if not project.store.exists(evaluation_key(key)):
        return None
    return project.store.read_record(evaluation_key(key), Evaluation).loss
