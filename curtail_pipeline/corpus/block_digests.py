"""Token files verified by block: a digest per MiB in the manifest, checked when a block is first read.

Opening a set of many GB stays instant, and a flipped bit never reaches a model: whoever reads it gets an error that
names the file and the place.
"""

import hashlib
from pathlib import Path

from curtail_pipeline.corpus.corpus_records import ShardFile
from curtail_pipeline.errors import CorpusError
from curtail_pipeline.storage.store import file_sha256

BLOCK = 1 << 20
"""Bytes. Shuffled sequences touch a block each: smaller ones cost less per first batch and more manifest, 67 B each."""


def digested(path: Path, tokens: int) -> ShardFile:
    """A finished file as its manifest lists it, read once."""
    whole, blocks = hashlib.sha256(), []
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            whole.update(block)
            blocks.append(hashlib.sha256(block).hexdigest())
    return ShardFile(name=path.name, tokens=tokens, sha256=whole.hexdigest(), blocks=tuple(blocks))


class VerifiedFile:
    """One token file: every block is hashed once in this process, before its first use.

    Args:
        key: the file's store key, for errors.
        fix: what to do about damage.
    """

    def __init__(self, path: Path, file: ShardFile, key: str, fix: str) -> None:
        self._path, self._file, self._key, self._fix = path, file, key, fix
        self._known = bytearray(max(1, len(file.blocks)))
        """1 for a block that is verified."""

    def check(self, low: int, high: int) -> None:
        """Verify the bytes `low <= i < high`.

        Raises:
            CorpusError: they are not what was written.
        """
        if not self._file.blocks:  # of an earlier version, which knew whole files only
            low, high = 0, 1
        first, last = low // BLOCK, (high - 1) // BLOCK
        if last - first < 2 and self._known[first] and self._known[last]:
            return  # asked for every sequence: the usual case has to be quick
        for block in range(first, last + 1):
            if not self._known[block]:
                self._verify(block)
                self._known[block] = 1

    def _verify(self, block: int) -> None:
        if not self._file.blocks:
            wanted, found, where = self._file.sha256, file_sha256(self._path), ""
        else:
            with self._path.open("rb") as stream:
                stream.seek(block * BLOCK)
                found = hashlib.sha256(stream.read(BLOCK)).hexdigest()
            wanted, where = self._file.blocks[block], f" in the MiB from byte {block * BLOCK} on"
        if found != wanted:
            raise CorpusError(f"shard {self._key} is damaged{where}: sha256 {found}, written was {wanted}; {self._fix}")
