"""What one range of windows hands to the next (`windows/<day>.state.json`)."""

import hashlib
import json
from dataclasses import dataclass

from pydantic import Field

from curtail_pipeline.settings.rule_settings import RuleSettings
from curtail_pipeline.storage.records import Message, Utc
from curtail_pipeline.windows.hysteresis import SignalState
from curtail_pipeline.windows.stats import Sums


def rule_digest(rule: RuleSettings) -> str:
    """Identifies a rule with its defaults filled in, so that a state is never carried on under another rule."""
    signals = [[s.kind, s.enter_at, s.exit_at, s.delay_s, s.max_signal_age_s, s.estimates_s] for s in rule.signals]
    content = json.dumps([signals, rule.needs_all, rule.required_s])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class RegionState:
    """State of one region (times in microseconds since the epoch, UTC)."""

    rule: str
    signals: tuple[SignalState, ...]
    since: int | None = None
    """Start of the stretch in which the rule holds, while it does."""
    opens: int | None = None
    """When that stretch counts as a window; None while a forecast holds it back."""
    opened_by: str | None = None
    sums: Sums | None = None
    """Sums of the window that is open; None while none is."""
    past: tuple[int, ...] = ()
    """Durations of the region's last stretches, microseconds, for rules with a minimum duration."""

    @classmethod
    def fresh(cls, rule: RuleSettings) -> "RegionState":
        return cls(rule_digest(rule), tuple(SignalState() for _ in rule.signals))


class RuleState(Message):
    """The rule's carry-over state at an instant: deriving on from it equals deriving the whole range at once.

    Two states that are equal make equal windows from the same later traces.
    """

    at: Utc
    regions: dict[str, RegionState] = Field(default_factory=dict)
