"""Named tensors on disk: safetensors only, the same bytes for the same values, checked by hash when read."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file

from curtail_pipeline.errors import TrainingError
from curtail_pipeline.storage.atomic import replacing
from curtail_pipeline.storage.store import NotStored, Store, file_sha256
from curtail_pipeline.training.pending_upload import Files


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write a safetensors file atomically; the sha256 (hex) of its bytes.

    The file depends on names, shapes and values alone: safetensors orders tensors by type and name, and the only
    metadata is the `format` that transformers asks for.
    """
    with replacing(path) as scratch:
        try:
            save_file(
                {name: t.detach().to("cpu").contiguous() for name, t in tensors.items()}, scratch, {"format": "pt"}
            )
        except safetensors.SafetensorError as error:
            raise _as_os_error(error, path) from error
        scratch.chmod(0o644)
        return file_sha256(scratch)


def _as_os_error(error: safetensors.SafetensorError, path: Path) -> Exception:
    """What the system said, where safetensors hides it in a text."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return OSError(int(found[1]), os.strerror(int(found[1])), str(path)) if found else error


def read_tensors(store: Store, key: str, sha256: str, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Read a stored safetensors file whose bytes have this sha256 (hex).

    Raises:
        TrainingError: missing, or its content is not what the hash says.
    """
    try:
        with store.local(key) as path:
            found = file_sha256(path)
            if found != sha256:
                raise TrainingError(
                    f"{key} is corrupt: its sha256 is {found}, expected {sha256}; restore the file or go back to an "
                    "earlier checkpoint (`curtail checkpoints verify` tells which are whole)"
                )
            return load_file(path, device=device)
    except NotStored:
        raise TrainingError(
            f"{key} is not in the store {store.uri}; restore it or start from a checkpoint that exists"
        ) from None
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
