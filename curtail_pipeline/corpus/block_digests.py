"""Token files verified by block: a digest per MiB in the manifest, checked when a block is first read.

Opening a set of many GB stays instant, and a flipped bit never reaches a model: whoever reads it gets an error that
names the file and the place.
"""

import hashlib
import mmap
from pathlib import Path

from curtail_pipeline.corpus.corpus_records import ShardFile
from curtail_pipeline.errors import CorpusError

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
        content: all of it, mapped.
        key: the file's store key, for errors.
        fix: what to do about damage.
    """

    def __init__(self, content: mmap.mmap, file: ShardFile, key: str, fix: str) -> None:
        self._content, self._file, self._key, self._fix = content, file, key, fix
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
            low, size, wanted, where = 0, len(self._content), self._file.sha256, ""
        else:
            low, size = block * BLOCK, min(BLOCK, len(self._content) - block * BLOCK)
            wanted, where = self._file.blocks[block], f" in the MiB from byte {low} on"
        if hasattr(self._content, "madvise"):
            self._content.madvise(mmap.MADV_WILLNEED, low, size)
        found = self._sha256(low, size)
        if found != wanted:
            raise CorpusError(f"shard {self._key} is damaged{where}: sha256 {found}, written was {wanted}; {self._fix}")

    def _sha256(self, low: int, size: int) -> str:
        """Of a part, whose pages do not count as this process's memory afterwards."""
        digest = hashlib.sha256()
        with memoryview(self._content) as view:
            for begin in range(low, low + size, BLOCK):
                with view[begin : min(begin + BLOCK, low + size)] as part:
                    digest.update(part)
                    if hasattr(self._content, "madvise"):
                        self._content.madvise(mmap.MADV_DONTNEED, begin, len(part))
        return digest.hexdigest()
