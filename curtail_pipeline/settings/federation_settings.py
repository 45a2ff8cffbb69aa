"""Settings of rounds, of the outer step, and of the processes that a federation consists of."""

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from curtail_pipeline.settings.section import Section

LossyName = Literal["bf16", "int8", "int4", "int2", "int2_topk"]
CodecName = Literal["fp32", LossyName]
"""How what was moved travels (`federation.codecs`); with `fp32` the weights travel as they are."""
DownloadName = Literal["fp32", "bf16", "int8", "int4", "int2"]
"""Nobody keeps what these lose, so that none that leaves values out is among them."""
StateCodecName = Literal["fp32", "bf16", "int8", "int4", "int2"]
"""Of an inner state (`federation.state_file`), which has no small values that could be left out."""

CODED: Final = "int4"
"""What `auto` is for linked sites: by it the merge's step and inner states cost no loss that could be measured
(docs/quality.md), and no replay needs what they lose, unlike an update."""


class RoundSettings(Section):
    """Rounds and segments."""

    round_s: Annotated[float, Field(gt=0)] | Literal["auto"] = 600.0
    """From a round's start until its members stop training, loading included (600 s in the paper). `auto` chooses it
    by what a round costs and how long windows are (`scheduling.round_length`)."""
    staleness_s: float = Field(default=3600.0, gt=0)
    """With `auto`, no round is longer: so long may sites train apart."""
    window_s: float = Field(default=7200.0, gt=0)
    """With `auto`, how long a site is expected to train at a time, where the record before the start does not say."""
    update_mb: Annotated[float, Field(ge=0)] | Literal["auto"] = "auto"
    """Megabytes (10^6 bytes) that a member receives at a round's start and sends at its end, over its `link`: weights,
    and the inner state where it is merged. `auto` is what model, codecs and fragments come to
    (`settings.exchange_size`)."""
    sync: Literal["all", "paying"] = "all"
    """Who shares a round of those that could train: all, or, with `paying`, those that do the most steps together: a
    site whose link would keep the others waiting for longer than its steps are worth holds, and trains when it is
    alone. Policies that plan weigh that by themselves, within `plan_slots` of the deadline."""
    open_local: bool = False
    """The prototype's rounds: while one member trains alone its round has no time limit; it ends when the membership
    changes, and a joining site interrupts it."""
    max_rounds: int = Field(default=12, ge=1)
    """Length cap of a segment."""
    outer_lr: float = Field(default=1.0, gt=0)
    outer_momentum: float = Field(default=0.0, ge=0, lt=1)
    """Nesterov outer step of DiLoCo (arXiv:2311.08105); 1 and 0 is plain averaging. DiLoCo's own 0.7 and 0.9 are for
    members that stay the same over hundreds of rounds."""
    member_lr_power: float = Field(default=0.5, ge=0, le=1)
    """Inner learning rates in a round of M members are times M to this power: M steps at a time are fewer steps in a
    row, as with a batch M times as large (the square root of arXiv:2205.10287)."""
    inner_state: Literal["merged", "own"] = "merged"
    """What a site's inner optimiser begins a round with: the states that the members of the round before left, averaged
    by tokens, or the one that it left itself, which is stale where others have trained since and fresh at a site that
    joins. A merged state travels like the weights, both ways, and has 1.3 times as many values for a d20."""
    upload_codec: CodecName = "fp32"
    """How a site sends what it moved. What a codec loses stays in the site's inner state and comes with a later
    update; what is committed is what arrived. `int4` costs no loss that could be measured (docs/quality.md); the
    default is `fp32` because a replay by another codec needs what the site has kept."""
    download_codec: Literal["auto", DownloadName] = "auto"
    """How sites that hold a round's starting weights get the next ones; the merge's step is rounded so. By `fp32` they
    get the weights. `auto` is `int4` for linked sites, elsewhere `fp32`."""
    state_codec: Literal["auto", StateCodecName] = "auto"
    """How merged inner states travel, both ways. Nobody keeps what it loses: a state forgets it by itself. `auto` is
    `int4` for linked sites, elsewhere `fp32`."""
    overlap: bool = False
    """Updates travel and are merged while the next round trains: a site begins it with the merge of the round before
    last and its own last update (eager updates, arXiv:2502.12996). What is pending when a segment ends is merged then.
    Within a segment each site goes on from its own inner state. Updates have to be coded: they say what was moved,
    whatever it was moved from."""
    fragments: int = Field(default=1, ge=1, le=1000)
    """Parts of the weights that are exchanged in turn, one with each round (Streaming DiLoCo, arXiv:2501.18512): a site
    trains on from what it has moved in the others, and sends everything that is left when the segment ends. Each round
    moves so many times fewer bytes. Within a segment each site goes on from its own inner state. Updates have to be
    coded, and with a `download_codec` of `fp32` the weights still come back whole. At most as many as the model has
    layers, and two for its embedding and its head."""
    quorum: int = Field(default=1, ge=1)
    """Updates without which a round's are not merged; all of them where fewer sites train."""
    grace: float | None = Field(default=None, gt=0)
    """Once `quorum` sites have answered a round, the others are waited for so many median times that these took; then
    it is merged without them, what they did does not count, and their text goes back. All are waited for when not
    given."""
    norm_bound: float = Field(default=5.0, gt=1)
    """An update is refused when its norm exceeds this many medians of the other sites' in its round; or of the last 20
    accepted ones and 20 norms of the round's starting weights as well."""

    @model_validator(mode="after")
    def _overlaps(self) -> "RoundSettings":
        if self.overlap and self.upload_codec == "fp32":
            raise ValueError("overlap takes updates that say what was moved, and upload_codec is fp32; set it to bf16")
        if self.overlap and self.sync == "paying":
            raise ValueError("sync paying weighs the waiting for links, which overlap takes away; set it to all")
        if self.fragments > 1 and self.upload_codec == "fp32":
            raise ValueError(
                f"fragments {self.fragments} takes updates that say what was moved, and upload_codec is fp32; "
                "set it to bf16"
            )
        return self

    def download(self, *, linked: bool) -> DownloadName:
        """What `download_codec` comes to."""
        if self.download_codec == "auto":
            return CODED if linked else "fp32"
        return self.download_codec

    def state(self, *, linked: bool) -> StateCodecName:
        """What `state_codec` comes to."""
        if self.state_codec == "auto":
            return CODED if linked else "fp32"
        return self.state_codec

    @property
    def length_s(self) -> float:
        """The length of a round; 600 s as long as `auto` has not been resolved."""
        return 600.0 if self.round_s == "auto" else self.round_s


class LivenessLimits(Section):
    """How long what works on a segment may show no progress before it counts as lost (wall seconds)."""

    liveness_s: float = Field(default=10.0, gt=0)
    """Without a heartbeat; and in a step, which may also take five times the median one."""
    transfer_s: float = Field(default=600.0, gt=0)
    """Fetching weights, inner state and text, storing what was trained, and merging."""
    compile_s: float = Field(default=600.0, gt=0)
    """The first step of a model in its process. No step may take longer, whatever the median is said to be."""
    delivery_s: float = Field(default=30.0, gt=0)
    """From an order's sending to the begin of its work, and from its end to the result. Flower starts a process for
    each message."""


DEFAULT_LIMITS = LivenessLimits()


class FederationSettings(LivenessLimits):
    linked: tuple[str, ...] = ()
    """Sites without credentials of the store: their orders bring pre-signed addresses. The store is a bucket then."""
    start_timeout_s: float = Field(default=120.0, gt=0)
    differing_site: Literal["refuse", "record"] = "refuse"
    """What becomes of a site whose torch release, corpus or tokenizer is not the one that the segment was planned with:
    it is turned away by name, or its work counts and the difference stands in log and manifest."""
    lost_state: Literal["fresh", "refuse"] = "fresh"
    """What a site does whose inner optimiser state is lost or damaged: start fresh, with a warning, or nothing."""
    heldout_gate: float | None = Field(default=None, gt=0)
    """Refuse an update whose loss on held-out text lies so many nats per token above that of the round's starting
    weights. The ServerApp then evaluates every update, on a CPU; it needs the held-out shard in the store."""
    snapshot_minutes: float | None = Field(default=10.0, gt=0)
    """How often a trainer writes down what it has done of a round, on its machine: one that is killed does at most so
    much again when the same work is asked for. It holds a copy of weights and optimiser state in the host's memory from
    the first on. Never with null."""
    replay: Literal["spare", "own"] = "spare"
    """Who repeats a committed checkpoint: the sites' trainers in the time that live segments leave them, or a process
    of its own on the machine that asks, which needs the sites' devices there."""

    @property
    def limits(self) -> LivenessLimits:
        """Those alone, to be handed on."""
        return LivenessLimits.model_validate(self.model_dump(include=set(LivenessLimits.model_fields)))
