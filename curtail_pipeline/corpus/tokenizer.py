"""The tokenizer: a byte-level BPE in the files that `AutoTokenizer.from_pretrained` loads.

Text is split with the pattern of Llama 3 (GPT-4's, https://github.com/openai/tiktoken `cl100k_base`): every byte
sequence can be encoded, digits in groups of three at most. The separator token stands in front of every document, in
training and, through the post-processor, in front of a prompt.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from curtail_pipeline.errors import CorpusError
from curtail_pipeline.settings.corpus_settings import CorpusSettings
from curtail_pipeline.storage.records import Record, Sha256

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LONGEST_RUN = 512
_LONG_RUN = re.compile(rf"\S{{{LONGEST_RUN}}}(?=\S)|\s{{{LONGEST_RUN}}}(?=\s)")
"""Longer words teach the tokenizer piece by piece: learning a word of 40,000 equal letters, and loading what was
learned from it, took 22 s of processor time and grew with the square of its length."""
CHAT_TOKENS = tuple(
    f"<|{who}_{what}|>" for who in ("user", "assistant", "python", "output") for what in ("start", "end")
)
"""Reserved for fine-tuning, as in nanochat; no training text contains them as tokens."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


TokenDtype = Literal["uint16", "uint32"]


class TokenizerInfo(Record):
    """What everything else needs to know of a tokenizer."""

    sha256: Sha256
    """Of tokenizer.json."""
    vocab_size: int
    """One more than the largest token id."""
    separator: str
    separator_id: int

    @property
    def dtype(self) -> TokenDtype:
        """Of a token on disk: `uint16` where ids fit, else `uint32`."""
        return "uint16" if self.vocab_size <= 1 << 16 else "uint32"


def train_bpe(texts: Iterable[str], vocab_size: int, separator: str) -> Tokenizer:
    """Train on texts. The vocabulary is smaller than asked for when the texts have no more pairs to merge.

    Raises:
        CorpusError: there is no text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = list(dict.fromkeys([separator, *CHAT_TOKENS]))
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    seen = 0

    def counted() -> Iterator[str]:
        nonlocal seen
        for text in texts:
            seen += len(text)
            yield from _pieces(text)

    tokenizer.train_from_iterator(counted(), trainer)
    if not seen:
        raise CorpusError("the corpus has no text to train a tokenizer on; name a source with documents")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{separator} $A",
        pair=f"{separator} $A {separator} $B",
        special_tokens=[(separator, tokenizer.token_to_id(separator))],
    )
    return tokenizer


def _pieces(text: str) -> Iterator[str]:
    begin = 0
    for run in _LONG_RUN.finditer(text):
        yield text[begin : run.end()]
        begin = run.end()
    yield text[begin:]


def save_tokenizer(tokenizer: Tokenizer, folder: Path, separator: str) -> TokenizerInfo:
    """Write tokenizer.json and tokenizer_config.json into a folder, whatever model it is for."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": separator,
        "eos_token": separator,
        "pad_token": separator,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True) + "\n", encoding="utf-8")
    return tokenizer_info(folder, separator)


def tokenizer_info(folder: Path, separator: str) -> TokenizerInfo:
    """Describe the tokenizer in a folder.

    Raises:
        CorpusError: no tokenizer.json there, an unreadable one, or one without the separator token.
    """
    path = folder / "tokenizer.json"
    try:
        data = path.read_bytes()
        vocab = Tokenizer.from_buffer(data).get_vocab(with_added_tokens=True)
    except FileNotFoundError as error:
        raise CorpusError(f"no tokenizer.json in {folder}; name a folder with one, or train one") from error
    except Exception as error:  # `tokenizers` raises bare Exception on a malformed file
        raise CorpusError(f"{path} is not a tokenizer ({error}); restore or rebuild it") from error
    if separator not in vocab:
        raise CorpusError(
            f"the tokenizer in {folder} has no token {separator!r} to put in front of documents; set "
            "corpus.separator to one of its special tokens"
        )
    return TokenizerInfo(
        sha256=hashlib.sha256(data).hexdigest(),
        vocab_size=max(vocab.values()) + 1,
        separator=separator,
        separator_id=vocab[separator],
    )


def train_tokenizer(settings: CorpusSettings, folder: Path, texts: Iterable[str]) -> TokenizerInfo:
    """Train on texts and save to a folder that `AutoTokenizer.from_pretrained` loads.

    Raises:
        CorpusError: there is no text, or the vocabulary would be too small for bytes and special tokens.
    """
    return save_tokenizer(train_bpe(texts, settings.vocab_size, settings.separator), folder, settings.separator)


def load_tokenizer(settings: CorpusSettings, folder: Path) -> TokenizerInfo:
    """Copy the tokenizer named by `settings.tokenizer` (a folder, else a Hugging Face name) to a folder.

    Raises:
        CorpusError: it is not there, cannot be fetched, or lacks the separator.
    """
    name = settings.tokenizer
    assert name is not None
    source = Path(name).expanduser()
    try:
        if source.is_dir():
            tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
        else:
            tokenizer = Tokenizer.from_pretrained(name)
    except Exception as error:  # the same for missing, malformed and unreachable
        raise CorpusError(
            f"cannot load the tokenizer {name!r} ({error}); corpus.tokenizer is a folder with tokenizer.json or a "
            "name on the Hugging Face hub"
        ) from error
    if tokenizer.token_to_id(settings.separator) is None:
        special = [t.content for t in tokenizer.get_added_tokens_decoder().values() if t.special]
        raise CorpusError(
            f"the tokenizer {name!r} has no token {settings.separator!r} to put in front of documents; set "
            f"corpus.separator to one of its special tokens: {', '.join(special[:10]) or 'it has none'}"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return save_tokenizer(tokenizer, folder, settings.separator)
