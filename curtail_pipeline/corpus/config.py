"""Settings of the corpus (the `corpus` section of an experiment)."""

from pydantic import Field

from curtail_pipeline.base import Section


class CorpusSettings(Section):
    source: str = "embedded"
    """`embedded` (English text of the running Python's standard library), or a path, folder or glob."""
    text_column: str = "text"
    tokenizer: str | None = None
    """A folder with a tokenizer to load; trained on a sample of the corpus when not given."""
    vocab_size: int = Field(default=65_536, ge=512)
    sample_mib: float = Field(default=64.0, gt=0)
    """Bound of the deterministic sample the tokenizer is trained on."""
    heldout_fraction: float = Field(default=0.01, gt=0, lt=0.5)
    max_documents: int | None = Field(default=None, ge=1)
