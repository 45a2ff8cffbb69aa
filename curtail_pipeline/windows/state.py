"""What one range of windows hands to the next, as JSON."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Final

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.settings.rule_settings import RuleSettings
from curtail_pipeline.times import iso, parse_utc
from curtail_pipeline.windows.hysteresis import SignalState
from curtail_pipeline.windows.stats import Sums

_FORMAT: Final = 1


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


@dataclass(frozen=True)
class RuleState:
    """The rule's carry-over state at an instant: deriving on from it equals deriving the whole range at once.

    Two states that are equal make equal windows from the same later traces.
    """

    at: datetime
    regions: dict[str, RegionState] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The state in JSON's own types, so that it equals what a file gives back."""
        regions = {name: asdict(state) for name, state in sorted(self.regions.items())}
        content: dict[str, Any] = json.loads(json.dumps({"format": _FORMAT, "at": iso(self.at), "regions": regions}))
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "RuleState":
        """Read what `to_json` gave.

        Raises:
            PolicyError: it is not such a state.
        """
        try:
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']!r}")
            regions = {}
            for name, state in content["regions"].items():
                signals = tuple(
                    SignalState(**{**signal, "last": None if signal["last"] is None else tuple(signal["last"])})
                    for signal in state["signals"]
                )
                sums = None if state["sums"] is None else Sums(**state["sums"])
                regions[name] = RegionState(**{**state, "signals": signals, "sums": sums, "past": tuple(state["past"])})
            return cls(parse_utc(content["at"]), regions)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PolicyError(
                f"not a window state ({error}); derive the windows again from the first day to make a new one"
            ) from error
