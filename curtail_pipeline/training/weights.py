"""Named tensors on disk: safetensors only, the same bytes for the same values, checked by hash when read."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.federation.tensor_stream import TensorWriter
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.store import NotStored, Store, file_sha256
from curtail_pipeline.training.pending_upload import Files

TYPES = {torch.float32: "F32"}
"""As safetensors calls what is written. Of several types its order would not be that of names."""


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write a safetensors file atomically; the sha256 (hex) of its bytes.

    The file depends on names, shapes and values alone, and has the bytes that safetensors' own `save_file` gives it:
    ordered by name, with the `format` that transformers asks for as the only metadata. It is hashed while it is
    written, and a device's tensors are fetched meanwhile.

    Args:
        tensors: float32, as weights and optimiser states are.
    """
    ordered = sorted(tensors.items())
    layout = [(name, TYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in ordered]
    with replacing(path) as scratch:
        with TensorWriter(scratch, layout, sync=False) as out:
            for _, tensor in ordered:
                out.write(tensor.detach().to("cpu").contiguous().reshape(-1).numpy().data.cast("B"))
        scratch.chmod(0o644)
        return out.sha256


def read_tensors(store: Store, key: str, sha256: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read a stored safetensors file whose bytes have this sha256 (hex).

    Raises:
        TrainingError: missing, or its content is not what the hash says.
    """
    try:
        with store.local(key) as path:
            return checked_tensors(path, key, sha256, device)
    except NotStored:
        raise TrainingError(
            f"{key} is not in the store {store.uri}; restore it or start from a checkpoint that exists"
        ) from None


def checked_tensors(path: Path, key: str, sha256: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """`read_tensors` of a file that is here; `key` is what errors call it."""
    if (found := file_sha256(path)) != sha256:
        raise TrainingError(
            f"{key} is corrupt: its sha256 is {found}, expected {sha256}; restore the file or go back to an "
            "earlier checkpoint (`curtail checkpoints verify` tells which are whole)"
        )
    try:
        return load_file(path, device=device)
    except safetensors.SafetensorError as error:
        raise TrainingError(f"{key} is not a safetensors file ({error}); restore it from its checkpoint") from error


def store_tensors(files: Files, key: str, tensors: Mapping[str, torch.Tensor]) -> tuple[str, int]:
    """Write tensors under a key; sha256 (hex) and size in bytes."""
    with files.new_file(key) as path:
        return write_tensors(path, tensors), path.stat().st_size


def require_same_shapes(own: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Whether a model that has tensors like `own` can take these weights.

    Raises:
        TrainingError: they are another model's; `source` names them.
    """
    wrong = sorted(set(own) ^ set(weights)) or [n for n, t in own.items() if t.shape != weights[n].shape]
    if wrong:
        raise TrainingError(
            f"{source} does not fit the model's config: {wrong[0]!r} is missing, unknown or of another shape; "
            "use the config.json beside the weights"
        )
