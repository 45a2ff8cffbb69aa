"""The check of a committed checkpoint's token ledger against its parent's."""

from curtail_pipeline.errors import LedgerError, StoreError
from curtail_pipeline.signals.checks import CheckOutcome
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.manifest import count_tokens

TOKEN_LEDGER = "token_ledger"
DESCRIPTION = "Every token of the lineage counts once: the parent's ranges plus this segment's are this ledger's."


def check_tokens(project: Project, key: str) -> CheckOutcome:
    """Whether a checkpoint's ranges and token counters follow from its parent; of the initialised model, that there
    are none. A manifest that cannot be read fails too, with the reason."""
    length = project.experiment.training.sequence_length
    try:
        manifest = project.checkpoints.manifest(key)
        tokens = count_tokens(
            project.checkpoints.manifest(manifest.parent) if manifest.parent else None, manifest, length
        )
    except (LedgerError, StoreError) as error:
        return CheckOutcome(TOKEN_LEDGER, False, "error", str(error), {"checkpoint": key})
    return CheckOutcome(
        TOKEN_LEDGER,
        True,
        "error",
        f"{tokens:,} tokens along the lineage, each counted once",
        {"checkpoint": key, "parent": manifest.parent or "none", "tokens": tokens},
    )
