"""What the index keeps of a checkpoint: enough to list it, and that its manifest is valid."""

from pydantic import ValidationError

from curtail_pipeline.storage.manifest import Manifest, Mode, sealed
from curtail_pipeline.storage.records import Record, Utc


class CheckpointSummary(Record):
    """What a list says of a checkpoint."""

    key: str
    parent: str | None
    mode: Mode
    members: list[str]
    rounds: int
    steps: int
    """Of the whole lineage."""
    tokens: int
    """Of its own segment."""
    total_tokens: int
    start: Utc
    end: Utc
    stop_reason: str
    weights_sha256: str | None

    @classmethod
    def of(cls, manifest: Manifest) -> "CheckpointSummary":
        weights = manifest.files.get("model.safetensors")
        return cls(
            key=manifest.key,
            parent=manifest.parent,
            mode=manifest.mode,
            members=manifest.members,
            rounds=manifest.rounds,
            steps=manifest.steps.end,
            tokens=manifest.tokens.segment,
            total_tokens=manifest.tokens.total,
            start=manifest.start,
            end=manifest.end,
            stop_reason=manifest.stop_reason,
            weights_sha256=weights.sha256 if weights else None,
        )


def summarise_bytes(key: str, data: bytes) -> str | None:
    """What a list says of the checkpoint with this manifest, as JSON; None when the bytes are not a valid manifest."""
    if not sealed(data):
        return None  # told without parsing: thousands of damaged folders must not hold up the sensor
    try:
        found = Manifest.model_validate_json(data)  # its bytes are those that were written
    except ValidationError:
        return None
    return CheckpointSummary.of(found).model_dump_json() if found.key == key else None
