"""The manifest of a checkpoint: what was realised, hashed, and how it follows from its parent.

The bytes of `manifest.json` depend on its content alone, so that its sha256 can link a child to its parent, and the
content carries its own hash, so that a flipped bit anywhere in the file shows without a second copy.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal, NotRequired, TypedDict

from pydantic import Field, SerializerFunctionWrapHandler, ValidationError, model_serializer

from curtail_pipeline.errors import LedgerError, StoreError
from curtail_pipeline.settings.sites import PowerState
from curtail_pipeline.storage.records import Json, Record, Sha256, Utc
from curtail_pipeline.storage.store import canonical_json
from curtail_pipeline.tokens.ledger import Ledger, Moved, Report, SiteRanges
from curtail_pipeline.tokens.ranges import Range, total

KEY_PATTERN = r"^ckpt-\d{6}$"
_SEAL = b' "content_sha256": "'
FRESH = "fresh"
"""The name of an inner optimiser state that has seen no step."""

Key = Annotated[str, Field(pattern=KEY_PATTERN)]
StateName = Annotated[str, Field(pattern=rf"^({FRESH}|sha256:[0-9a-f]{{64}})$")]


class Steps(Record):
    begin: int = Field(ge=0)
    end: int = Field(ge=0)


class Tokens(Record):
    segment: int = Field(ge=0)
    total: int = Field(ge=0)


class SiteLedger(Record):
    """All that was consumed of a site's shard set in the lineage up to and including this checkpoint."""

    epoch: int = Field(ge=1)
    consumed: list[Range]
    moved: list[Moved] = Field(default_factory=list)
    """[epoch, start, stop, site]: ranges that rebalancing gave to another site. Not written when there is none."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Json]:
        content: dict[str, Json] = write(self)
        if not self.moved:
            content.pop("moved", None)
        return content

    def as_ranges(self) -> SiteRanges:
        """As `tokens.ledger` reads it."""
        ranges: SiteRanges = {"epoch": self.epoch, "consumed": self.consumed}
        return {**ranges, "moved": self.moved} if self.moved else ranges


class InnerStates(Record):
    """The inner optimiser state at the begin and at the end, by name."""

    begin: StateName
    end: StateName


class SiteResult(Record):
    """What one site did in this segment."""

    steps: int = Field(ge=0)
    tokens: int = Field(ge=0)
    consumed: list[Range]
    inner_state: InnerStates
    made_with: dict[str, str] = Field(default_factory=dict)
    """Versions of its packages, and its `corpus` and `tokenizer` by sha256. Not written where it is not known."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Json]:
        content: dict[str, Json] = write(self)
        if not self.made_with:
            content.pop("made_with", None)
        return content


class Interval(Record):
    """A site's power draw, PUE included, over `[start, end)` of the experiment's clock."""

    site: str
    state: PowerState
    start: Utc
    end: Utc
    kw: float = Field(ge=0, allow_inf_nan=False)
    measured: bool = False
    """By the site's counters, on average; else by its settings. Written only where it is so."""

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Json]:
        content: dict[str, Json] = write(self)
        if not self.measured:
            content.pop("measured")
        return content


class StoredFile(Record):
    sha256: Sha256
    bytes: int = Field(ge=0)


Mode = Literal["init", "local", "federated"]


class Fields(TypedDict):
    """What a commit says of a checkpoint; the rest of its manifest follows from files and parent."""

    parent: str | None
    mode: Mode
    members: Sequence[str]
    stop_reason: str
    attempt: NotRequired[int]
    experiment_sha256: str
    seed: int
    start: datetime
    end: datetime
    steps: Mapping[str, int]
    """`begin` and `end`."""
    tokens: Mapping[str, int]
    """`segment`; `total` follows from the parent's."""
    rounds: int
    sites: Mapping[str, SiteResult]
    ledger: NotRequired[Mapping[str, SiteRanges]]
    """The parent's and what the sites consumed, when not given."""
    intervals: Sequence[Interval]
    norm_history: NotRequired[Sequence[float]]
    versions: NotRequired[Mapping[str, str]]


class Content(Fields):
    """All that a manifest says but for its own hash."""

    key: str
    parent_manifest_sha256: str | None
    generation: int
    files: Mapping[str, StoredFile]


class Manifest(Record):
    """`manifest.json` of a checkpoint, written last."""

    format: Literal[2] = 2
    key: Key
    parent: Key | None
    parent_manifest_sha256: Sha256 | None
    mode: Mode
    members: list[str]
    stop_reason: str
    generation: int = Field(ge=0)
    attempt: int = Field(ge=0)
    experiment_sha256: Sha256
    seed: int
    start: Utc
    end: Utc
    steps: Steps
    tokens: Tokens
    rounds: int = Field(ge=0)
    ledger: dict[str, SiteLedger]
    sites: dict[str, SiteResult]
    intervals: list[Interval]
    norm_history: list[Annotated[float, Field(ge=0, allow_inf_nan=False)]] = Field(default_factory=list)
    """Norms of the last accepted updates of the run, newest last: the next segment's bound is derived from them."""
    files: dict[str, StoredFile]
    versions: dict[str, str]
    content_sha256: Sha256
    """sha256 of the canonical JSON of everything else."""

    def token_ledger(self) -> Ledger:
        """What the lineage has consumed.

        Raises:
            LedgerError: malformed or overlapping ranges.
        """
        return Ledger.from_json({name: part.as_ranges() for name, part in self.ledger.items()})

    def to_bytes(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))

    def sha256(self) -> str:
        """The hash by which a child names this manifest: that of the file's bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def _content_sha256(content: Mapping[str, Json]) -> str:
    return hashlib.sha256(canonical_json({k: v for k, v in content.items() if k != "content_sha256"})).hexdigest()


def _explain(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()[:3])


def make_manifest(content: Content) -> Manifest:
    """Validate the content of a manifest and seal it with its own hash.

    Raises:
        StoreError: a field is missing, unknown or of the wrong type.
    """
    try:
        draft = Manifest.model_validate({**content, "content_sha256": "0" * 64})
        return draft.model_copy(update={"content_sha256": _content_sha256(draft.model_dump(mode="json"))})
    except ValidationError as error:
        raise StoreError(f"manifest of {content.get('key')!r} cannot be written: {_explain(error)}") from error


def parse_manifest(data: bytes, key: str) -> Manifest:
    """The manifest in these bytes, if they are exactly what was written for this key.

    Raises:
        StoreError: not JSON, not a manifest, another key's, or not the bytes that were written.
    """
    where = f"checkpoints/{key}/manifest.json"
    fix = "restore it from a copy, or move the folder away to train this segment again"
    try:
        manifest = Manifest.model_validate(json.loads(data))
    except ValidationError as error:
        raise StoreError(f"{where} is not a valid manifest ({_explain(error)}); {fix}") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{where} is not valid JSON ({error}); {fix}") from error
    if not sealed(data) or manifest.to_bytes() != data:
        found = _content_sha256(manifest.model_dump(mode="json"))
        raise StoreError(
            f"{where} was changed: its content hashes to {found}, expected {manifest.content_sha256}; {fix}"
        )
    if manifest.key != key:
        raise StoreError(f"{where} is the manifest of {manifest.key!r}; {fix}")
    return manifest


def sealed(data: bytes) -> bool:
    """Whether these bytes, without the line of their own hash, hash to what it says. True of every valid manifest."""
    if not data.endswith(b"}\n"):
        return False  # cut short, without hashing it
    begin = data.find(_SEAL)
    end = data.find(b"\n", begin)
    if begin < 0 or end < 0:
        return False
    line = data[begin + len(_SEAL) : end]
    return hashlib.sha256(data[:begin] + data[end + 1 :]).hexdigest().encode() == line.rstrip(b'",')


def next_ledger(parent: Manifest | None, sites: Mapping[str, SiteResult]) -> dict[str, SiteRanges]:
    """The parent's ledger plus what this segment consumed, as the manifest writes it.

    Raises:
        LedgerError: a range would be counted twice, or belongs to another site.
    """
    before = parent.token_ledger() if parent else Ledger()
    reports: dict[str, Report] = {
        name: {"lease": site.consumed, "consumed": site.consumed} for name, site in sites.items()
    }
    return before.commit(reports).to_json([*(parent.ledger if parent else ()), *sites])


def count_tokens(parent: Manifest | None, child: Manifest, sequence_length: int) -> int:
    """Tokens counted along the lineage, once the ledger and the counters are found to follow from the parent's.

    Args:
        sequence_length: predicted tokens of one sequence.

    Raises:
        LedgerError: the invariant does not hold; the message says where.
    """
    ledger, before = child.token_ledger(), parent.token_ledger() if parent else Ledger()
    ledger.verify_against(before, {site: done.consumed for site, done in child.sites.items()})
    tokens = ledger.tokens(sequence_length)
    counted = {
        "tokens.total": (child.tokens.total, tokens),
        "tokens.segment": (child.tokens.segment, tokens - before.tokens(sequence_length)),
    }
    counted |= {
        f"sites.{site}.tokens": (done.tokens, total(done.consumed) * sequence_length)
        for site, done in child.sites.items()
    }
    for name, (stated, real) in counted.items():
        if stated != real:
            raise LedgerError(f"{child.key}: {name} is {stated}, its ranges hold {real}; do not use it")
    return tokens


def check_link(parent: Manifest | None, child: Manifest, sequence_length: int | None = None) -> None:
    """That a checkpoint follows from its parent: hash, steps, tokens and token ranges.

    Args:
        sequence_length: with it tokens are checked against the ranges too.

    Raises:
        StoreError: the hash, step or token count does not follow.
        LedgerError: a range is counted twice or by a site it does not belong to, or the ledger is not the parent's
            plus this segment's.
    """
    name = child.key
    parent_sha = parent.sha256() if parent else None
    if child.parent != (parent.key if parent else None) or child.parent_manifest_sha256 != parent_sha:
        raise StoreError(
            f"{name} names parent {child.parent} with manifest sha256 {child.parent_manifest_sha256}, but that "
            f"manifest's is {parent_sha}; restore the parent from a copy"
        )
    steps, tokens = (parent.steps.end, parent.tokens.total) if parent else (0, 0)
    done = sum(site.steps for site in child.sites.values())
    if child.steps.begin != steps or child.steps.end != steps + done:
        raise StoreError(
            f"{name} counts steps {child.steps.begin} to {child.steps.end}, but its parent ends at {steps} and its "
            f"sites did {done}; the manifest has to add up"
        )
    trained = sum(site.tokens for site in child.sites.values())
    if child.tokens.segment != trained or child.tokens.total != tokens + trained:
        raise StoreError(
            f"{name} counts {child.tokens.segment} tokens and {child.tokens.total} in total, but its sites trained on "
            f"{trained} and its parent had {tokens}; the manifest has to add up"
        )
    ledger = child.token_ledger()
    try:
        ledger.verify_against(
            parent.token_ledger() if parent else Ledger(),
            {site: result.consumed for site, result in child.sites.items()},
        )
    except LedgerError as error:
        raise LedgerError(f"{name}: {error}") from error
    written = {site: part.as_ranges() for site, part in child.ledger.items()}
    for site, part in ledger.to_json(child.ledger).items():
        if written.get(site) != part:
            raise LedgerError(
                f"{name}: the ledger of {site} is written as {written.get(site)}, but its ranges are {part}"
            )
    if sequence_length is not None:
        count_tokens(parent, child, sequence_length)
