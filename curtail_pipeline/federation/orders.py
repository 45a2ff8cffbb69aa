"""The messages of a federation, one frozen model each, written and read through it on both sides.

A segment's plan becomes an order per site and round; a result comes back; what was realised is a journal line per round
and a segment at the end. A heartbeat shows that a site lives.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from curtail_pipeline.emissions.meter import Drawn
from curtail_pipeline.federation.exchange import Exchange
from curtail_pipeline.federation.fragments import Fragment
from curtail_pipeline.federation.grace import Quorum
from curtail_pipeline.federation.merge_report import MergeReport
from curtail_pipeline.settings.federation_settings import CodecName, StateCodecName
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.manifest import FRESH, InnerStates, SiteLedger, SiteResult, StateName
from curtail_pipeline.storage.records import Message, Record, Sha256, Utc
from curtail_pipeline.tokens.ranges import Range

StopReason = Literal["steps", "deadline", "membership", "exhausted"]
Loss = Annotated[float, Field(allow_inf_nan=False)]
Word = Annotated[str, Field(max_length=100)]


class StoredWeights(Record):
    """Weights by reference."""

    key: str
    """Store key of a safetensors file."""
    sha256: Sha256


class StoredDelta(StoredWeights):
    """How far weights moved from others, by reference: those, minus what it decodes to, are the weights."""

    codec: CodecName
    base: StoredWeights
    """What they moved from."""


class SharedState(Record):
    """The inner optimiser state that every site begins a round with."""

    name: StateName
    key: str = ""
    """Store key of a safetensors file; none where it is fresh."""


class Watch(Record):
    """The desired membership that a round follows while it runs."""

    key: str
    """Store key of it."""
    generation: int
    """A newer one that does not have the site train ends the round."""


class SiteTerms(Record):
    """What a site is held to."""

    made_with: dict[str, str] = Field(default_factory=dict)
    """What the plan was made with: version of `torch`, and sha256 of `corpus` (its dealing) and `tokenizer`."""
    differing: Literal["refuse", "record"] = "record"
    """What becomes of the work of a site that has others."""
    lost_state: Literal["fresh", "refuse"] = "fresh"
    """Whether a site whose inner state is lost or damaged starts fresh; never in a replay."""


class Order(Message):
    """One site's part in one round."""

    key: str = Field(min_length=1)
    attempt: int = Field(ge=0)
    round: int = Field(ge=0)
    site: str
    experiment_uri: str
    store: str
    parent: StoredWeights
    """The weights that the round starts from."""
    delta: StoredDelta | None = None
    """Of the same weights, for whoever holds its base."""
    own: StoredWeights | None = None
    """The site's update of the round before, which the parent's weights are without: it starts from both."""
    config: str
    """Store key of the model's `config.json`."""
    inner_state: StateName
    residual: StateName = FRESH
    """What the site's last update left out, which this one brings."""
    shared: SharedState | None = None
    """Where `inner_state` is the members' merged one: where it lies. A snapshot of the site's own when not given."""
    first_step: int = Field(ge=0)
    members: int = Field(ge=1)
    total_steps: int = Field(ge=1)
    max_steps: int = Field(ge=0)
    deadline_s: float | None
    """Wall seconds of training, counted from the first step."""
    lease: tuple[Range, ...]
    """Sequences to be trained on, in this order."""
    seed: int
    watch: Watch | None = None
    terms: SiteTerms = SiteTerms()
    out: str = Field(min_length=1)
    """Store key for the new weights, or how far they moved."""
    codec: CodecName = "fp32"
    """How they are written."""
    fragment: Fragment | None = None
    """What of them is written; everything if None."""
    goes_on: bool = False
    """Whether it starts from what its last updates left out besides, and sends of that even if it does no step: where
    the weights are exchanged in fragments."""
    inner_out: str = ""
    """Store key for the inner state at the end, which is merged; a snapshot of the site's own when not given."""
    inner_codec: StateCodecName = "fp32"
    """How it is written there."""
    replay: str = ""
    """The repetition that it belongs to; empty in a live segment. Live orders come first at a trainer."""
    stop: str = ""
    """Store key of a record that ends the round when it is there: how a cancelled segment reaches any site."""
    late: str = ""
    """Likewise, when the round was merged without those who still work on it."""
    delivered: str = ""
    """Store key for the record (`answered.Delivered`) that what it wrote is in the store; the answer comes before."""
    coming: str = ""
    """Store key for the record (`answered.Merged`) of the weights that the next round starts from."""
    links: Links | None = None
    """Addresses of all that the round reads and writes, for a site without credentials of the store."""

    @property
    def name(self) -> tuple[str, int, str, int]:
        """What makes two orders the same order."""
        return (self.key, self.attempt, self.replay, self.round)

    def with_links(self, links: Links | None) -> "Order":
        return self.model_copy(update={"links": links})


class WrittenWeights(StoredWeights):
    """Weights that a site wrote."""

    bytes: int = Field(ge=0)


class Result(Message):
    """The answer to an order. Losses are mean nats per token of a step; null when no step was done."""

    site: str
    round: int
    parent_sha256: Sha256
    begun_sha256: Sha256 | None = None
    """Of what the parent's weights make with the site's own last update, and with what its updates have left out where
    it goes on from that; None where it started from the parent's."""
    steps: int = Field(ge=0)
    tokens: int = Field(ge=0)
    consumed: tuple[Range, ...]
    loss_first: Loss | None
    loss_last: Loss | None
    loss_mean: Loss | None
    seconds: float = Field(ge=0, allow_inf_nan=False)
    tokens_per_s: float = Field(ge=0, allow_inf_nan=False)
    weights: WrittenWeights
    codec: CodecName = "fp32"
    """By which they are written; by any but `fp32` they are how far they moved."""
    inner_state: InnerStates
    """What it really began with: `fresh` where the one it was given is lost."""
    residual: InnerStates | None = None
    """Likewise; None where the codec leaves nothing out."""
    made_with: dict[Word, Word] = Field(default_factory=dict, max_length=64)
    """Versions of the site's packages, and its `corpus` and `tokenizer` as `SiteTerms` has them."""
    stop: StopReason
    drawn: Drawn | None = None
    """Over `seconds`; None where the site has no counters."""


Phase = Literal["fetch", "compile", "train", "store"]
"""What a training thread is at: getting weights, inner state and text; the first step of a model in its process; a
step; writing what it has trained."""


class Activity(Record):
    """What a trainer's training thread does, written by no other thread."""

    key: str
    attempt: int
    replay: str
    round: int
    phase: Phase
    count: int
    """Signs of progress on this order: phases entered and steps done."""
    step_s: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Median seconds of its last steps; None before the first."""
    waited_for: bool = True
    """Whether somebody at the site waits for the result, to send it back: a ClientApp that runs."""

    @property
    def name(self) -> tuple[str, int, str, int]:
        """Of the order, as `Order.name`."""
        return (self.key, self.attempt, self.replay, self.round)


class Heartbeat(Message):
    """The sign of life that a trainer writes (`agents/<site>.json`)."""

    site: str
    pid: int
    at: Utc
    busy: bool
    activity: Activity | None = None
    """None while no order is worked on."""


def agent_key(site: str) -> str:
    """Store key of the heartbeat that a site's trainer writes."""
    return f"agents/{site}.json"


class ParentCheckpoint(Record):
    """The checkpoint a segment starts from, by store keys."""

    key: str
    weights: str
    sha256: Sha256
    """Of the weights."""
    delta: StoredDelta | None = None
    """Of the same weights, for whoever holds its base."""
    outer: str | None = None
    config: str


class PlannedRound(Record):
    """A round whose steps per site are known beforehand (headless runs and replays)."""

    index: int = Field(ge=0)
    start: Utc | None = None
    end: Utc | None = None
    steps: dict[str, int]
    lease: dict[str, tuple[Range, ...]]
    stops: dict[str, str] = Field(default_factory=dict)
    """Members that stop before the round's time is up, and why."""
    members: int | None = None
    """How many took part when the round was first run; a replay leaves out those whose update was refused."""
    first_step: int | None = None
    """What its orders begin with; None where it follows from the steps that counted."""
    fresh: tuple[str, ...] = ()
    """Members that begin without the inner state that is there, as they did when the round was first run."""
    forgot: tuple[str, ...] = ()
    """Likewise without what their updates had left out."""
    whole: bool | None = None
    """Whether it exchanges all fragments; None for the last one alone."""


class OpenRounds(Record):
    """Rounds that last a wall-clock time and go on until the membership changes (live and replay clocks)."""

    round_s: float = Field(gt=0)
    max_rounds: int = Field(ge=1)
    lease: dict[str, tuple[Range, ...]]
    generation: int


class OuterSettings(Record):
    lr: float
    momentum: float


class StepSize(Record):
    """What one optimiser step takes, the same at every site."""

    sequences: int = Field(ge=1)
    tokens: int = Field(ge=1)
    """Predicted ones."""
    grad_clip: float | None = None
    """The norm that its gradient is clipped to. None in what an earlier version wrote."""


class Plan(Message):
    """A segment as asked for (`plan.json`). Exactly one of `rounds` and `open` is given."""

    key: str
    attempt: int = 1
    generation: int = 0
    parent: ParentCheckpoint
    members: tuple[str, ...] = Field(min_length=1)
    mode: Literal["local", "federated"]
    first_step: int = Field(ge=0)
    total_steps: int = Field(ge=0)
    seed: int = 0
    experiment_uri: str = "experiment.json"
    rounds: tuple[PlannedRound, ...] | None = None
    open: OpenRounds | None = None
    inner_state: dict[str, StateName] = Field(default_factory=dict)
    residual: dict[str, StateName] = Field(default_factory=dict)
    """Of each site's own."""
    shared: SharedState | None = None
    """What every site begins with, where inner states are merged (`rounds.inner_state`)."""
    outer: OuterSettings
    exchange: Exchange = Exchange()
    quorum: Quorum = Quorum()
    norm_bound: float = Field(gt=1)
    norm_history: tuple[float, ...] = ()
    step_size: StepSize | None = None
    """What results are checked against; None in what an earlier version wrote."""
    terms: SiteTerms = SiteTerms()
    heldout_gate: float | None = Field(default=None, gt=0)
    """Nats per token that an update may lie above the round's starting weights on held-out text; no gate if None."""
    ledger: dict[str, SiteLedger] = Field(default_factory=dict)
    """What the lineage has consumed at the segment's start, rebalanced text included."""
    replay: str = ""
    """Which repetition of the segment this is (`plan.replay_folder` is where it works); empty for a live segment."""
    linked: tuple[str, ...] = ()
    """Members whose orders bring pre-signed addresses."""
    stop_reason: str = "plan finished"
    """Why the segment ends when every planned round has run."""
    written: Utc | None = None
    """By the wall clock: when its attempt began. None in what an earlier version wrote, and in a repetition."""

    @model_validator(mode="after")
    def _consistent(self) -> "Plan":
        if (self.rounds is None) == (self.open is None):
            raise ValueError("give either rounds or open")
        if self.mode == "local" and len(self.members) != 1:
            raise ValueError(f"mode local has one member, not {', '.join(self.members)}")
        for planned in self.rounds or ():
            if strange := sorted(planned.steps.keys() - set(self.members)):
                raise ValueError(f"round {planned.index} has steps for {strange[0]!r}, which is no member")
        return self


class RoundDone(Record):
    """What was realised in a round, per site whose update counts."""

    index: int
    start: Utc
    end: Utc
    members: int
    """How many took part; the learning rate depended on it."""
    first_step: int | None = None
    """What its orders began with, where steps of an update that was refused afterwards may be in it."""
    steps: dict[str, int]
    tokens: dict[str, int]
    consumed: dict[str, tuple[Range, ...]]
    loss: dict[str, tuple[Loss | None, Loss | None]]
    """Of the first and the last step."""
    stops: dict[str, str]
    refused: dict[str, str]
    """Late ones are among them."""
    lost: dict[str, str]
    overdue: dict[str, str] = Field(default_factory=dict)
    """Sites whose answer to an earlier round, which was merged without it, came in this one."""
    odd: dict[str, str] = Field(default_factory=dict)
    """What is out of the ordinary at a site whose update counts."""
    fresh: tuple[str, ...] = ()
    """Sites that began without the inner state they were given: it was lost."""
    forgot: tuple[str, ...] = ()
    """Sites that began without what their updates had left out: it was lost."""
    fragment: Fragment | None = None
    """What was exchanged; everything if None."""
    weights: StoredWeights
    delta: StoredDelta | None = None
    """How far they moved from the round's starting weights."""


class JournalLine(Message):
    """A line of `rounds.jsonl`: a round with all that led to it."""

    done: RoundDone
    orders: dict[str, Order]
    results: dict[str, Result]
    merge: MergeReport
    wall_s: float | None = None
    """Of the whole round, whatever its own times say; None in what an earlier version wrote."""


class OuterState(Record):
    """The outer optimiser's buffer by reference; its hash is known once a round was merged."""

    key: str
    sha256: Sha256 | None = None


class Segment(Message):
    """A segment as realised (`segment.json`), written last."""

    key: str
    attempt: int
    rounds: tuple[RoundDone, ...]
    sites: dict[str, SiteResult]
    weights: StoredWeights
    delta: StoredDelta | None = None
    """How far the last round moved them."""
    outer: OuterState | None
    shared: SharedState | None = None
    """What the next segment's sites begin with, where inner states are merged."""
    stop_reason: str
    steps: int
    tokens: int
    norm_history: tuple[float, ...]
    lost: dict[str, str]
    refused: dict[str, str]
