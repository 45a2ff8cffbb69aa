"""What `bench exchange` measures, each in a process of its own."""

import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import numpy as np

from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.merge import merge
from curtail_pipeline.federation.merge_pass import Update
from curtail_pipeline.federation.tensor_stream import TensorFile, TensorWriter, pieces
from curtail_pipeline.federation.update_file import write_start, write_update, write_weights
from curtail_pipeline.settings.federation_settings import CodecName
from curtail_pipeline.storage.store import file_sha256

WRITTEN = 2
"""Files that a merge writes, weights and momentum."""


class Costs(NamedTuple):
    """Of something done in a process of its own."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    """Largest resident set of the process."""


def encode(parent: Path, source: Path, codec: CodecName, out: Path, fragment: Fragment | None = None) -> None:
    if codec == "fp32":
        with TensorFile(source) as site:
            layout = [(t.name, t.dtype, t.shape) for t in site.tensors.values()]
            with TensorWriter(out, layout) as written:
                for tensor in site.tensors.values():
                    for first, count in pieces(tensor):
                        written.write(site.raw(tensor, first, count))
        return
    with TensorFile(parent) as origin, TensorFile(source) as site:
        write_update(out, CODECS[codec], origin, lambda name, *at: site.floats(site.tensors[name], *at), {}, fragment)


def start(parent: Path, out: Path) -> None:
    with TensorFile(parent) as origin:
        left = {tensor.name: np.ones(tensor.count, np.float32) for tensor in origin.tensors.values()}
    write_start(parent, None, "fp32", left, out)


def decode(parent: Path, update: Path, codec: CodecName, out: Path) -> None:
    write_weights(parent, update, codec, out)


def copy_and_hash(paths: Sequence[Path], folder: Path) -> None:
    """As many copies stay as a merge writes files: new pages of memory cost more than used ones."""
    for number, path in enumerate(paths):
        copy = folder / f"copy{number}"
        shutil.copyfile(path, copy)
        handle = os.open(copy, os.O_RDONLY)
        os.fsync(handle)  # as a merge does with what it writes
        os.close(handle)
        file_sha256(copy)
        if number >= WRITTEN:
            copy.unlink()


def merge_files(
    parent: Path,
    outer: Path,
    paths: Sequence[Path],
    hashes: Sequence[str],
    codec: CodecName,
    folder: Path,
    fragment: Fragment | None = None,
) -> None:
    updates = [
        Update(path.name, path, 1000 + number, digest, "0" * 64, 0, codec)
        for number, (path, digest) in enumerate(zip(paths, hashes, strict=True))
    ]
    report = merge(
        parent, outer, updates, "federated", 0.7, 0.9, folder / "weights", folder / "momentum", 5.0, [],
        parent_sha256="0" * 64, round_index=0, fragment=fragment,
    )  # fmt: skip
    assert not report.refused, report.refused


def apart(do: Callable[..., None], *arguments: object) -> Costs:
    """Do it in a new process."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_report, args=(theirs, do, arguments))
    process.start()
    theirs.close()
    costs: Costs = ours.recv()
    process.join()
    return costs


def _report(answer: Connection, do: Callable[..., None], arguments: Sequence[object]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    do(*arguments)
    taken = round(time.perf_counter() - wall, 3), round(time.process_time() - cpu, 3)
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    answer.send(Costs(*taken, round(peak / 1024, 1)))
