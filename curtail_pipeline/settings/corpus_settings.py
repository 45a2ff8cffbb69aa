"""Settings of the corpus (the `corpus` section of an experiment)."""

from typing import Literal

from pydantic import Field

from curtail_pipeline.settings.section import Section

Exhausted = Literal["next_epoch", "done"]
"""What happens to a site that has trained on all its sequences: another pass in a new order, or no more training."""


class CorpusSettings(Section):
    source: str = "embedded"
    """`embedded` (English text of the running Python's standard library), or a file, folder or glob of .txt,
    .jsonl (also .gz, .zst) and .parquet; `s3://bucket/prefix` and `hf://datasets/owner/name/path` are read in place."""
    text_column: str = "text"
    """Column of .parquet and key of .jsonl that holds a document."""
    text_separator: str | None = None
    """What divides a .txt file into documents, e.g. `"<|endoftext|>"` or a blank line; a file is one document when
    not given."""
    tokenizer: str | None = None
    """A folder or Hugging Face name of a tokenizer to load; trained on a sample of the corpus when not given."""
    separator: str = "<|bos|>"
    """The special token in front of every document."""
    vocab_size: int = Field(default=65_536, ge=512)
    sample_mib: float = Field(default=64.0, gt=0)
    """Bound of the deterministic sample the tokenizer is trained on."""
    heldout_fraction: float = Field(default=0.01, gt=0, lt=0.5)
    max_documents: int | None = Field(default=None, ge=1)
    max_document_mib: float = Field(default=4.0, gt=0)
    """A longer document is cut into pieces of at most this size; all of them stay on its side of the split."""
    shard_tokens: int = Field(default=67_108_864, ge=1024)
    """Tokens of one shard file (the last one of a site is shorter)."""
    shares: Literal["equal", "expected"] = "equal"
    """How the text is dealt, unless sites declare a `share`: equally, or by the hours each site is expected to train
    in a simulation of the experiment on the traces ingested at that time, at least 1 % of all hours per site. Frozen
    once the text is dealt."""
    rebalance: bool = False
    """Before every segment, move text that nobody has trained on so that what each site has left of the pass follows
    the shares again."""
    fresh_first: bool = True
    """Before a segment, give a member that would begin another pass over its own text what other sites have not reached
    of theirs. Text stays where it was dealt if false, and where `exhausted` is `done`."""
    exhausted: Exhausted = "next_epoch"
    workers: int | None = Field(default=None, ge=1)
    """Processes that tokenise; as many as cores and memory allow when not given."""
    memory_mib: int = Field(default=1024, ge=256)
    """Bound on the memory of building shards, over all worker processes."""
