"""What centralised training of the same experiment reached with as many tokens, where a stored curve says it."""

import hashlib
from dataclasses import dataclass

from curtail_pipeline.corpus.build import stored_manifest
from curtail_pipeline.corpus.dealing import HELDOUT
from curtail_pipeline.settings.central_curve import CentralCurve, identity_of, stored_curves
from curtail_pipeline.stages.project import Project
from curtail_pipeline.storage.store import Store


@dataclass(frozen=True)
class CentralReference:
    """A run against centralised training."""

    loss: float | None
    """Held-out, nats per token, at the run's tokens; None where nothing is known."""
    reason: str
    """Where it is from, or why there is none."""


def central_reference(project: Project, tokens: int) -> CentralReference:
    """The reference at so many tokens."""
    stored = stored_curves()
    wanted = identity_of(project.experiment)
    alike = [curve for curve in stored.curves if curve.identity == wanted]
    if not alike:
        return CentralReference(
            loss=None, reason="none is stored of this experiment: `curtail bench central` makes one"
        )
    text = heldout_text(project.store)
    curve = next((curve for curve in alike if curve.heldout == text), None)
    if curve is None:
        return CentralReference(
            loss=None, reason="the one stored is of another text (embedded text is that of the Python in use)"
        )
    loss = curve.loss_at(tokens)
    if loss is None:
        return CentralReference(
            loss=None, reason=f"the stored one covers {_span(curve)} tokens, the run has {tokens:,}"
        )
    return CentralReference(loss=loss, reason=f"{stored.command}, {stored.date[:10]}")


def heldout_text(store: Store) -> str:
    """A hash of the held-out tokens and the tokenizer they were made with; empty where they are not built."""
    manifest = stored_manifest(store, HELDOUT)
    if manifest is None:
        return ""
    return hashlib.sha256(
        "".join([manifest.tokenizer_sha256, *(f.sha256 for f in manifest.files)]).encode()
    ).hexdigest()


def _span(curve: CentralCurve) -> str:
    return f"{curve.tokens[0]:,} to {curve.tokens[-1]:,}"
