"""Text to token ids, fast: `fastokens`, held to token-for-token equality with Hugging Face `tokenizers`.

Special-token look-alikes in the text are ordinary text: only the separator that building puts in front of a document
is ever a control token.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from tokenizers import Tokenizer

Engine = Literal["fastokens", "tokenizers"]
CHECK_CHARS = 8192
"""Length up to which a sampled document is compared."""


class EncodingDiffers(Exception):
    """`fastokens` cannot stand in for `tokenizers` here; the build starts again with `tokenizers`."""


class Encoder:
    """Encodes batches of documents with the tokenizer of a folder.

    Raises:
        EncodingDiffers: `fastokens` cannot load the tokenizer.
    """

    def __init__(self, folder: Path, engine: Engine = "fastokens") -> None:
        text = (folder / "tokenizer.json").read_text(encoding="utf-8")
        self._reference = Tokenizer.from_str(text)
        self._reference.encode_special_tokens = True
        self.engine = engine
        if engine == "fastokens":
            from fastokens import Tokenizer as FastTokenizer

            try:
                self._fast = FastTokenizer.from_json_str(text)
            except Exception as error:  # bare exceptions for whatever tokenizer.json feature it lacks
                raise EncodingDiffers(f"fastokens cannot load this tokenizer ({error})") from error

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids, offsets): uint32 ids of all texts in a row; text i is `ids[offsets[i]:offsets[i + 1]]`."""
        if self.engine == "fastokens":
            ids, offsets = self._fast.encode_batch_flat(list(texts), split_special_tokens=True)
            return np.frombuffer(ids, dtype="<u4"), np.frombuffer(offsets, dtype="<u8").astype(np.int64)
        rows = self.reference(texts)
        sizes = np.fromiter((row.size for row in rows), dtype=np.int64, count=len(rows))
        return np.concatenate([np.empty(0, np.uint32), *rows]), np.concatenate(([0], np.cumsum(sizes)))

    def reference(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text by `tokenizers`."""
        encoded = self._reference.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.asarray(item.ids, dtype=np.uint32) for item in encoded]

    def check(self, texts: Sequence[str]) -> None:
        """Compare the first `CHECK_CHARS` of every text with `tokenizers`.

        Raises:
            EncodingDiffers: on the first difference.
        """
        if self.engine == "tokenizers":
            return
        heads = [text[:CHECK_CHARS] for text in texts]
        ids, offsets = self.encode(heads)
        for i, expected in enumerate(self.reference(heads)):
            if not np.array_equal(ids[offsets[i] : offsets[i + 1]], expected):
                raise EncodingDiffers(f"fastokens and tokenizers encode {heads[i][:80]!r} differently")


def with_separator(ids: np.ndarray, offsets: np.ndarray, separator_id: int, dtype: str) -> np.ndarray:
    """Put the separator in front of every document of a batch; little-endian ids as stored."""
    out = np.empty(ids.size + offsets.size - 1, dtype=np.dtype(dtype).newbyteorder("<"))
    heads = offsets[:-1] + np.arange(offsets.size - 1)
    body = np.ones(out.size, dtype=bool)
    body[heads] = False
    out[heads] = separator_id
    out[body] = ids
    return out
