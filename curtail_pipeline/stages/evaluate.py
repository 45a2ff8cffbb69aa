"""Held-out loss of a committed checkpoint, kept in the store beside the checkpoints."""

from pathlib import Path

from curtail_pipeline.corpus.batches import HeldoutReader
from curtail_pipeline.stages.model_worker import ModelWorker, Wanted
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.checkpoints import Checkpoints
from curtail_pipeline.training.heldout_loss import Evaluation, evaluate


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
        )
    finally:
        torch.set_num_threads(threads)


def stored_loss(project: Project, key: str) -> float | None:
    """The held-out loss that was stored for a checkpoint."""
    if not project.store.exists(evaluation_key(key)):
        return None
    return project.store.read_record(evaluation_key(key), Evaluation).loss
