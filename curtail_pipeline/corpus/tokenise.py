"""One slice of text to token parts, in this process or in a worker process.

`python -m curtail_pipeline.corpus.tokenise` reads one JSON line that says what to build, then one line per slice, and
answers each with one line (all of them `corpus_records`). It ends when its standard input does, so it cannot outlive
the build that started it, also where it was stopped.
"""

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from curtail_pipeline.corpus.corpus_records import (
    Part,
    SliceAnswer,
    SliceFailure,
    SliceOrder,
    SliceTokens,
    TokeniseOrder,
)
from curtail_pipeline.corpus.dealing import Dealing
from curtail_pipeline.corpus.documents import Counts
from curtail_pipeline.corpus.encoder import Encoder, EncodingDiffers, Engine, with_separator
from curtail_pipeline.errors import CurtailError
from curtail_pipeline.parent_death import sent_at_parents_end

BATCH_CHARS = 1 << 21
"""Text encoded at a time, per target."""
CHECK_EVERY = 512
"""One document in so many is compared with `tokenizers`, and the first of every slice."""


class SliceBuilder:
    """Tokenises slices of a dealing for some targets (sites, `heldout`)."""

    def __init__(self, dealing: Dealing, tokenizer: Path, engine: Engine) -> None:
        self._dealing = dealing
        self._encoder = Encoder(tokenizer, engine)

    def build(self, unit: int, parts: Mapping[str, Path]) -> SliceTokens:
        """Write the tokens of slice `unit` for each target to its path.

        Raises:
            EncodingDiffers: a checked document is encoded differently.
            CorpusError: unreadable text.
        """
        counts = Counts()
        writers = {self._dealing.number(target): _PartWriter(self, path) for target, path in parts.items()}
        try:
            for texts, keys, numbers in self._dealing.read(self._dealing.source.slices[unit], counts):
                checked = keys.split % CHECK_EVERY == 0
                for number, writer in writers.items():
                    chosen = np.flatnonzero(numbers == number)
                    if chosen.size:
                        sample = chosen[checked[chosen]] if writer.documents else chosen[:1]
                        if sample.size:
                            self._encoder.check([texts[i] for i in sample])
                        writer.add([texts[i] for i in chosen], int(keys.sizes[chosen].sum()))
            return SliceTokens(
                counts=counts.record(),
                parts={target: writers[self._dealing.number(target)].finish() for target in parts},
            )
        finally:
            for writer in writers.values():
                writer.close()

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        ids, offsets = self._encoder.encode(texts)
        info = self._dealing.tokenizer
        return with_separator(ids, offsets, info.separator_id, info.dtype)


class _PartWriter:
    def __init__(self, builder: SliceBuilder, path: Path) -> None:
        self._builder, self._stream = builder, path.open("wb")
        self._texts: list[str] = []
        self._chars = 0
        self.documents = self._bytes = self._tokens = 0

    def add(self, texts: list[str], size: int) -> None:
        self._texts += texts
        self._chars += sum(map(len, texts))
        self.documents += len(texts)
        self._bytes += size
        if self._chars >= BATCH_CHARS:
            self._flush()

    def _flush(self) -> None:
        if self._texts:
            tokens = self._builder.encode(self._texts)
            self._stream.write(tokens.data)
            self._tokens += tokens.size
        self._texts, self._chars = [], 0

    def close(self) -> None:
        self._stream.close()

    def finish(self) -> Part:
        self._flush()
        return Part(documents=self.documents, bytes=self._bytes, tokens=self._tokens)


def main() -> None:
    """Answer requests until standard input ends."""
    sent_at_parents_end(signal.SIGCONT)
    answers = sys.stdout
    sys.stdout = sys.stderr
    order = TokeniseOrder.read(sys.stdin.readline(), "the order to a tokenising worker")
    builder = None
    for line in sys.stdin:
        request = SliceOrder.read(line, "the order of a slice")
        try:
            if builder is None:
                builder = SliceBuilder(Dealing.of(order.dealing, order.uris), Path(order.tokenizer), order.engine)
            parts = {target: Path(path) for target, path in request.parts.items()}
            result: SliceTokens | SliceFailure = builder.build(request.unit, parts)
        except CurtailError as error:
            result = SliceFailure(error=str(error), kind="corpus")
        except EncodingDiffers as error:
            result = SliceFailure(error=str(error), kind="encoding differs")
        answers.write(SliceAnswer(result=result).model_dump_json() + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
