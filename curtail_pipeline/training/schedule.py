"""The learning-rate schedule: warm-up, stable, decay over the job's global step.

The schedule is a function of the global step alone. Step `i` (from 0) of a member in a round with `m` members is
global step `first_step + i * m`: each member walks the schedule at the pace of the whole job, and a replay, which
has the same first step and members, gets the same learning rates.
"""

from curtail_pipeline.errors import TrainingError

MOMENTUM = 0.95
FIRST_MOMENTUM = 0.85
"""Of Muon, in the long run and where it rises at a job's start; nanochat's settings."""


def multiplier(step: int, *, total_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """The factor in [0, 1] on every learning rate at a global step (from 0).

    Linear warm-up over `warmup_steps`, then 1, then linear decay over the last `decay_fraction` of `total_steps`,
    as nanochat's base training does; where warm-up and decay overlap the smaller holds. Beyond the job's end it is 0.

    Raises:
        TrainingError: a negative step or a job without steps.
    """
    if step < 0 or total_steps < 1:
        raise TrainingError(
            f"step {step} of {total_steps} is not in a job; steps count from 0 and a job has at least 1"
        )
    rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    decay_steps = round(decay_fraction * total_steps)
    left = max(0, total_steps - step)
    fall = min(1.0, left / decay_steps) if decay_steps else float(left > 0)
    return min(rise, fall)


def muon_momentum(step: int, warmup_steps: int) -> float:
    """Muon's momentum at a global step (from 0): linear from 0.85 to 0.95 over `warmup_steps`, as nanochat's base
    training of October 2025 does over 300; 0.95 throughout with none."""
    risen = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return (1 - risen) * FIRST_MOMENTUM + risen * MOMENTUM if risen < 1 else MOMENTUM


def global_step(first_step: int, local_step: int, members: int) -> int:
    """The global step of a member's `local_step` (from 0) in a round that began at `first_step`."""
    return first_step + local_step * members
