"""Parts of the weights that are exchanged in turn (`rounds.fragments`), as in Streaming DiLoCo (arXiv:2501.18512).

A round's updates hold the tensors of one fragment, and its merge moves no others. What a site has moved there stays
with it, as what codecs leave out does (`training.updates.Residual`): named, kept, replayed, and sent when it is the
fragment's turn. Until then the site trains on from it:

    start(r + 1, site) = weights(r) - left(r, site)

At the end of a segment everything that is left is exchanged, so that a checkpoint has all of what its ledger counts;
of a site that is lost before, the rest stays at the site and comes with its next update, as with any codec.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Self

from pydantic import Field, model_validator

from curtail_pipeline.errors import FederationError
from curtail_pipeline.federation.tensor_stream import TensorInfo
from curtail_pipeline.storage.records import Record

_BLOCK = re.compile(r"(.*?\.\d+)\.")
"""What tensors of one layer begin with."""


class Fragment(Record):
    """One of several parts."""

    index: int = Field(ge=0)
    of: int = Field(ge=2)

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.index >= self.of:
            raise ValueError(f"fragment {self.index} of {self.of} does not exist; the first is 0")
        return self

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` made.

        Raises:
            FederationError: it is something else.
        """
        found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text, re.ASCII)
        if found is None or not int(found[1]) < int(found[2]) >= 2:
            raise FederationError(f"its fragment is {text[:20]!a}, not one like 0/4")
        return cls(index=int(found[1]), of=int(found[2]))

    def names(self, tensors: Iterable[TensorInfo]) -> frozenset[str]:
        """Which of a model's tensors are in it."""
        return _dealt(tensors, self.of)[self.index]


def turn(fragments: int, index: int) -> Fragment | None:
    """Which fragment is exchanged in the round of this index; None for all."""
    return Fragment(index=index % fragments, of=fragments) if fragments > 1 else None


def _dealt(tensors: Iterable[TensorInfo], of: int) -> Sequence[frozenset[str]]:
    """Whole layers, the largest first, each to whichever fragment has least: layers alike are dealt in turn, as in the
    paper's strided pattern, and embeddings count for what they are."""
    blocks: dict[str, list[TensorInfo]] = {}
    for tensor in tensors:
        found = _BLOCK.match(tensor.name)
        blocks.setdefault(found[1] if found else tensor.name, []).append(tensor)
    sizes = {name: sum(tensor.count for tensor in block) for name, block in blocks.items()}
    dealt: list[list[str]] = [[] for _ in range(of)]
    filled = [0] * of
    for name in sorted(blocks, key=lambda name: (-sizes[name], _in_numbers(name))):
        least = filled.index(min(filled))
        dealt[least] += [tensor.name for tensor in blocks[name]]
        filled[least] += sizes[name]
    return [frozenset(names) for names in dealt]


def _in_numbers(name: str) -> list[tuple[int, str]]:
    """A key by which layer 2 comes before layer 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
