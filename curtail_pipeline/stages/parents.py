"""What a segment starts from: a committed checkpoint, by store keys."""

from curtail_pipeline.federation.orders import ParentCheckpoint, Segment
from curtail_pipeline.federation.plan import segment_key
from curtail_pipeline.federation.segment_state import DELTA, OUTER
from curtail_pipeline.storage.checkpoints import WEIGHTS_FILE
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.storage.store import Store


def parent_checkpoint(store: Store, manifest: Manifest) -> ParentCheckpoint:
    """With how its last round moved the weights, for sites that hold those before."""
    folder = f"checkpoints/{manifest.key}"
    delta = None
    if DELTA in manifest.files:
        delta = store.read_record(segment_key(folder), Segment).delta
        delta = delta.model_copy(update={"key": f"{folder}/{DELTA}"}) if delta else None
    return ParentCheckpoint(
        key=manifest.key,
        weights=f"{folder}/{WEIGHTS_FILE}",
        sha256=manifest.files[WEIGHTS_FILE].sha256,
        delta=delta,
        outer=f"{folder}/{OUTER}" if OUTER in manifest.files else None,
        config=f"{folder}/config.json",
    )
