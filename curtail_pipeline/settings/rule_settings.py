"""Window rules: what makes a region count as curtailed, with defaults per kind of signal.

A rule reads one signal, or several that combine by `any_of` or `all_of`. Each signal has two thresholds, an exit delay
and limits on its age and on estimates; the rule as a whole has a minimum duration.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic import Field, ValidationError, field_validator, model_validator

from curtail_pipeline.errors import PolicyError
from curtail_pipeline.settings.job import PolicySettings
from curtail_pipeline.settings.section import Section
from curtail_pipeline.settings.trace_settings import Kind


@dataclass(frozen=True)
class KindDefaults:
    """How values of one kind are compared, and the defaults of its rule.

    `below`: curtailed means a low value. `strict`: the value that equals the enter threshold does not enter.
    """

    unit: str
    below: bool
    strict: bool
    enter: float
    exit: float
    exit_delay_s: float
    estimated_limit_s: float | None


KIND_DEFAULTS: Final[Mapping[str, KindDefaults]] = {
    "marginal_intensity": KindDefaults("g/kWh", True, True, 100.0, 125.0, 300.0, None),
    "price": KindDefaults("currency/MWh", True, False, 0.0, 5.0, 300.0, 3600.0),
    "curtailed_power": KindDefaults("MW", False, False, 10.0, 5.0, 300.0, 3600.0),
}
"""Defaults per kind and where they come from.

marginal_intensity: enter below 100 g/kWh, as in all three regions of arXiv:2602.22760. On that paper's recorded signal
every threshold from 100 to 125 gives the same hours, so leaving at 125 absorbs chatter at no cost. Exit delay 300 s,
one value of a 5-minute feed; the paper's 600 s put 29 % of its emissions into tails. No limit on estimates, because
WattTime's value for the present 5 minutes always is one.

price: enter at or below 0, leave above 5 per MWh, the levels LMP0 and LMP5 of Yang & Chien's stranded-power studies
(ZCCloud). On 1,320 h of South Australian 5-minute prices at or below 0 finds 79 % of the curtailed hours at a precision
of 88 %. Estimates, which are not prices anybody paid, are believed for one hour.

curtailed_power: enter at 10 MW, the level from which the quality check (`curtail bench windows-quality`) counts an hour
as curtailed, leave below half of it. Estimates of an operator's figure are believed for one hour.

All kinds: a value holds for two cadences of its feed, so that one late value does not close a window and two do."""

AVERAGE_REFUSED: Final = (
    "average_intensity cannot define a window: a low average says how clean the mix is, not that power is being "
    "curtailed; use marginal_intensity, price or curtailed_power, and keep the average trace for accounting"
)


class SignalRule(Section):
    """One signal of a rule. Keys that are not given take the kind's default."""

    kind: Kind = "marginal_intensity"
    """`marginal_intensity`, `price` or `curtailed_power`."""
    enter: float | None = Field(default=None, allow_inf_nan=False)
    """The signal counts as curtailed below this value (price: at or below; curtailed power: at or above)."""
    exit: float | None = Field(default=None, allow_inf_nan=False)
    """It stops counting at or above this value (price: above; curtailed power: below). The enter threshold when that
    is given and this is not."""
    exit_delay_s: float | None = Field(default=None, ge=0)
    """Seconds that the signal still counts after it crossed the exit threshold; cancelled when it enters again."""
    max_signal_age_s: float | None = Field(default=None, gt=0)
    """A value holds no longer than this; two cadences of the feed when not given."""
    estimated_limit_s: float | None = Field(default=None, ge=0)
    """Estimated values are believed for this long after the first in a row."""

    @field_validator("kind")
    @classmethod
    def _defines_windows(cls, kind: Kind) -> Kind:
        if kind == "average_intensity":
            raise ValueError(AVERAGE_REFUSED)
        return kind

    @model_validator(mode="after")
    def _ordered(self) -> "SignalRule":
        low, high = (self.enter_at, self.exit_at) if self.defaults.below else (self.exit_at, self.enter_at)
        if low > high:
            side = "at or above" if self.defaults.below else "at or below"
            raise ValueError(
                f"{self.kind}: exit {self.exit_at:g} {self.unit} would leave before enter {self.enter_at:g} holds; "
                f"set exit {side} enter"
            )
        return self

    @property
    def defaults(self) -> KindDefaults:
        return KIND_DEFAULTS[self.kind]

    @property
    def unit(self) -> str:
        return self.defaults.unit

    @property
    def enter_at(self) -> float:
        return self.defaults.enter if self.enter is None else self.enter

    @property
    def exit_at(self) -> float:
        if self.exit is not None:
            return self.exit
        return self.defaults.exit if self.enter is None else self.enter

    @property
    def delay_s(self) -> float:
        return self.defaults.exit_delay_s if self.exit_delay_s is None else self.exit_delay_s

    @property
    def estimates_s(self) -> float | None:
        return self.defaults.estimated_limit_s if self.estimated_limit_s is None else self.estimated_limit_s


class RuleSettings(SignalRule):
    """The rule of a region: one signal by its own keys, or several under `any_of` or `all_of`."""

    any_of: list[SignalRule] = Field(default_factory=list)
    """Curtailed while at least one of these is."""
    all_of: list[SignalRule] = Field(default_factory=list)
    """Curtailed while all of these are."""
    min_duration_s: float = Field(default=0.0, ge=0)
    """A window expected to last less is not opened: by the forecast where there is one, else by the region's
    history."""
    start_up_s: float = Field(default=0.0, ge=0)
    """Time a site needs before it trains; a window not expected to last longer pays nothing. Counts as a minimum
    duration, it never shortens a window."""

    @model_validator(mode="after")
    def _one_form(self) -> "RuleSettings":
        if self.any_of and self.all_of:
            raise ValueError("give either any_of or all_of, not both")
        # By value, not by what was set: an experiment that was written out with its defaults must read back.
        own = sorted(name for name, info in SignalRule.model_fields.items() if getattr(self, name) != info.default)
        if own and (self.any_of or self.all_of):
            raise ValueError(f"{own[0]!r} beside any_of/all_of: move it into one of the signals listed there")
        kinds = [signal.kind for signal in self.signals]
        twice = [kind for kind in kinds if kinds.count(kind) > 1]
        if twice:
            raise ValueError(f"{twice[0]} is listed twice; a rule reads each kind of signal once")
        return self

    @property
    def signals(self) -> list[SignalRule]:
        """The signals in order; the first is the one whose mean and minimum a window row shows."""
        if self.any_of or self.all_of:
            return self.any_of or self.all_of
        return [SignalRule(**{key: getattr(self, key) for key in SignalRule.model_fields})]

    @property
    def needs_all(self) -> bool:
        return bool(self.all_of)

    @property
    def required_s(self) -> float:
        """The duration a window must be expected to reach before it is opened."""
        return max(self.min_duration_s, self.start_up_s)


RULE_PARAMETERS: Final = frozenset(RuleSettings.model_fields)
"""Keys of `policy.parameters` that belong to the window rule; all others belong to the chooser."""

WINDOW_RULES: Final[dict[str, Mapping[str, Any]]] = {
    # arXiv:2602.22760: below 100 g/kWh; 600 s of grace after the signal rose.
    "paper": {"enter": 100.0, "exit_delay_s": 600.0},
    "threshold": {"enter": 100.0, "exit_delay_s": 0.0},
    "boundary": {"enter": 100.0, "exit_delay_s": 0.0},
    "forecast": {"enter": 100.0, "exit_delay_s": 0.0},
    "budget": {"enter": 100.0, "exit_delay_s": 0.0},
    "hysteresis": {},
}
"""Policy name -> the rule of every region that has none of its own, for marginal intensity: `rule_of` puts another
kind's own threshold in place of `enter`. A policy's rule is registered here."""


def policy_named(name: str, own: PolicySettings) -> PolicySettings:
    """A policy in an experiment whose policy is `own`: that itself, or another one on the same signal.

    Another policy decides by the same signal and thresholds; the exit delay and the chooser's parameters are its own
    defaults.
    """
    if name == own.name:
        return own
    signal = RULE_PARAMETERS - {"exit_delay_s"}
    return PolicySettings(name=name, parameters={key: own.parameters[key] for key in own.parameters if key in signal})


def rule_of(policy: PolicySettings, region: str, rules: Mapping[str, RuleSettings] | None = None) -> RuleSettings:
    """The rule of a region: its own from `rules`, else the policy's with the parameters that belong to the rule.

    Raises:
        PolicyError: no such policy, or parameters that make no rule.
    """
    if rules and region in rules:
        return rules[region]
    if policy.name not in WINDOW_RULES:
        known = ", ".join(sorted(WINDOW_RULES))
        raise PolicyError(f"unknown policy {policy.name!r}; window rules exist for {known}")
    given = {key: value for key, value in policy.parameters.items() if key in RULE_PARAMETERS}
    base = dict(WINDOW_RULES[policy.name])
    if {"any_of", "all_of"} & given.keys():
        base = {}
    elif "enter" in base and given.get("kind") in KIND_DEFAULTS:
        base["enter"] = KIND_DEFAULTS[given["kind"]].enter
    try:
        return RuleSettings.model_validate({**base, **given})
    except ValidationError as error:
        item = error.errors()[0]
        where = ".".join(str(part) for part in item["loc"]) or "rule"
        got = "" if isinstance(item["input"], dict) else f" (got {item['input']!r})"
        message = item["msg"].removeprefix("Value error, ")
        raise PolicyError(f"policy {policy.name!r}, parameter {where}: {message}{got}") from error
