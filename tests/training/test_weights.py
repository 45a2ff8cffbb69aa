"""Tensors on disk: the bytes that safetensors' own writer gives."""

import hashlib
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from curtail_pipeline.training.weights import write_tensors

SHAPES = st.lists(st.integers(0, 5), max_size=3)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(min_size=1, max_size=8), SHAPES, max_size=6), st.integers(0, 9))
def test_the_bytes_are_those_of_safetensors_and_the_hash_is_theirs(shapes: dict[str, list[int]], seed: int) -> None:
    tensors = {
        name: torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        for name, shape in shapes.items()
        if name != "__metadata__"
    }
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder) / "ours", Path(folder) / "theirs"
        sha256 = write_tensors(ours, tensors)
        save_file(tensors, theirs, {"format": "pt"})
        assert ours.read_bytes() == theirs.read_bytes()
        assert sha256 == hashlib.sha256(theirs.read_bytes()).hexdigest()
        assert all(torch.equal(load_file(ours)[name], tensor) for name, tensor in tensors.items())


def test_a_view_is_written_as_what_it_shows(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_tensors(tmp_path / "view", {"turned": whole.T, "row": whole[1]})
    found = load_file(tmp_path / "view")
    assert torch.equal(found["turned"], whole.T) and torch.equal(found["row"], whole[1])


def test_a_full_disk_is_an_os_error_and_leaves_nothing(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "open", lambda self, mode="r", **_: open(full, mode))  # noqa: PTH123, SIM115
        with pytest.raises(OSError, match="No space left on device"):
            write_tensors(tmp_path / "weights", {"a": torch.ones(1 << 20)})
    assert list(tmp_path.iterdir()) == []
