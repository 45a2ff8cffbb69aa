"""What repeating a committed segment came to, and the check that says so. Loads nothing that trains."""

from dataclasses import dataclass

from curtail_pipeline.signals.checks import CheckOutcome, Metadata
from curtail_pipeline.storage.manifest import Manifest

REPLAY_IDENTICAL = "replay_identical"
DESCRIPTION = "Repeating the segment from its parent gave the weights that are committed, bit for bit."


@dataclass(frozen=True)
class Replayed:
    """What repeating a committed checkpoint gave."""

    manifest: Manifest
    committed_sha256: str
    replayed_sha256: str
    steps: int
    """Trained again."""
    seconds: float
    """Wall time, waiting for trainers included."""
    fresh_states: tuple[str, ...]
    """Sites whose inner state at the segment's start was pruned, so that they started fresh."""

    @property
    def identical(self) -> bool:
        return self.committed_sha256 == self.replayed_sha256

    def check(self) -> CheckOutcome:
        """As the asset check `replay_identical`."""
        said = f"{self.steps} steps again from {self.manifest.parent} gave "
        if self.identical:
            text = f"{said}the same weights, {self.replayed_sha256[:12]}"
        elif self.fresh_states:
            text = (
                f"{said}other weights: the inner optimiser state of {', '.join(self.fresh_states)} was pruned "
                "(training.keep_inner_states) and started fresh"
            )
        else:
            text = (
                f"{said}{self.replayed_sha256[:12]}, committed is {self.committed_sha256[:12]}; was it other hardware, "
                "another number of threads or another version of torch?"
            )
        found: Metadata = {"committed_sha256": self.committed_sha256, "replayed_sha256": self.replayed_sha256}
        return CheckOutcome(REPLAY_IDENTICAL, self.identical, "warn" if self.fresh_states else "error", text, found)
