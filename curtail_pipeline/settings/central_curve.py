"""What an experiment's model reaches when one site trains it all: stored curves that runs are compared with."""

import hashlib
import json
from bisect import bisect_left
from functools import cache
from pathlib import Path
from typing import Final

from pydantic import Field

from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.section import Section

CURVES_FILE: Final = Path(__file__).with_name("central_curves.json")
DEALT = {"shares", "rebalance", "fresh_first", "exhausted", "workers", "memory_mib", "shard_tokens"}
"""Of the section `corpus`: who trains on which text, and how it is stored. One site trains on all of it."""


class CentralCurve(Section):
    """Held-out loss of centralised training by tokens."""

    experiment: str
    identity: str
    """`identity_of` of it."""
    heldout: str
    """Hash of the held-out text (`stages.central_reference.heldout_text`)."""
    tokens: tuple[int, ...] = Field(min_length=2)
    """Trained on so far, ascending."""
    losses: tuple[float, ...]
    """Nats per token."""

    def loss_at(self, tokens: int) -> float | None:
        """Between two points on a line; None beyond the first and the last."""
        if not self.tokens[0] <= tokens <= self.tokens[-1]:
            return None
        place = max(1, bisect_left(self.tokens, tokens))
        (low, high), (before, after) = self.tokens[place - 1 : place + 1], self.losses[place - 1 : place + 1]
        return before + (after - before) * (tokens - low) / (high - low)


class CentralCurves(Section):
    """What `curtail bench central` writes."""

    command: str
    date: str
    """ISO 8601, UTC."""
    machine: str
    version: str
    """Of curtail_pipeline."""
    curves: tuple[CentralCurve, ...]


def identity_of(experiment: Experiment) -> str:
    """Hash of what centralised training depends on: seed, length of the job, model, optimisers and text.

    Settings at their default are left out, so that a new one makes no curve another experiment's.
    """
    content = {
        "seed": experiment.seed,
        "steps": experiment.job.steps,
        "training": experiment.training.model_dump(
            mode="json", exclude={"keep_inner_states", "compile"}, exclude_defaults=True
        ),
        "corpus": experiment.corpus.model_dump(mode="json", exclude=DEALT, exclude_defaults=True),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@cache
def stored_curves() -> CentralCurves:
    """Those that this version of the product came with."""
    return CentralCurves.model_validate_json(CURVES_FILE.read_bytes())
