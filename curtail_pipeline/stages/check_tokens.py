"""The check of a committed checkpoint's token ledger against its parent's."""

from curtail_pipeline.errors import LedgerError, StoreError
from curtail_pipeline.signals.checks import CheckOutcome
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.manifest import Manifest
from curtail_pipeline.tokens.ledger import Ledger

TOKEN_LEDGER = "token_ledger"
DESCRIPTION = "Every token of the lineage counts once: the parent's ranges plus this segment's are this ledger's."


def check_tokens(project: Project, key: str) -> CheckOutcome:
    """Whether a checkpoint's ranges and token counters follow from its parent; of the initialised model, that there
    are none. A manifest that cannot be read fails too, with the reason."""
    length = project.experiment.training.sequence_length
    try:
        manifest = project.checkpoints.manifest(key)
        tokens = count_tokens(
            manifest, project.checkpoints.manifest(manifest.parent) if manifest.parent else None, length
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


def count_tokens(manifest: Manifest, parent: Manifest | None, sequence_length: int) -> int:
    """Tokens counted along the lineage, once the ledger and the counters are found to follow from the parent's.

    Raises:
        LedgerError: the invariant does not hold; the message says where.
    """
    ledger, before = manifest.token_ledger(), parent.token_ledger() if parent else Ledger()
    ledger.verify_against(before, {site: done.consumed for site, done in manifest.sites.items()})
    tokens = ledger.tokens(sequence_length)
    counted = {
        "tokens.total": (manifest.tokens.total, tokens),
        "tokens.segment": (manifest.tokens.segment, tokens - before.tokens(sequence_length)),
    }
    for name, (stated, real) in counted.items():
        if stated != real:
            raise LedgerError(f"{manifest.key}: {name} is {stated}, its ranges hold {real}; do not use it")
    return tokens
