"""Held-out loss of a committed checkpoint, kept in the store beside the checkpoints."""

from pathlib import Path

from curtail_pipeline.corpus.batches import HeldoutReader
from curtail_pipeline.stages.project import Project
from curtail_pipeline.training.heldout_loss import Evaluation, evaluate


def evaluation_key(key: str) -> str:
    return f"evaluations/{key}.json"


def evaluate_checkpoint(project: Project, key: str) -> Evaluation:
    """Evaluate a checkpoint on the held-out shard and store the result.

    Raises:
        StoreError: there is no such checkpoint, or it is corrupt.
    """
    project.checkpoints.check(key)
    with project.checkpoints.folder(key) as folder:
        found = evaluate_folder(project, folder)
    project.store.write_record(evaluation_key(key), found)
    return found


def evaluate_folder(project: Project, folder: Path) -> Evaluation:
    """Held-out loss of a model folder; nothing is stored."""
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
