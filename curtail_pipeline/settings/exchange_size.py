"""What a round moves over a site's link, from the settings alone."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from curtail_pipeline.settings.federation_settings import CodecName, RoundSettings
from curtail_pipeline.settings.model_size import parameters_of, state_values_of
from curtail_pipeline.settings.training_settings import TrainingSettings

BYTES: Final[Mapping[CodecName, float]] = {
    "fp32": 4,
    "bf16": 2,
    "int8": 130 / 128,
    "int4": 34 / 64,
    "int2": 35 / 128,
    "int2_topk": 31 / 256,
}
"""Of a value, by the records of `federation.codecs`."""


class Moved(NamedTuple):
    """Megabytes (10^6 bytes) of one site."""

    first: float
    """Received before the first step after a start: weights as they are, and the merged inner state."""
    received: float
    """In a later round."""
    sent: float
    """At a round's end."""


def moved(rounds: RoundSettings, training: TrainingSettings, vocab_size: int, *, linked: bool) -> Moved:
    """By `rounds.update_mb`; with `auto` by model, codecs and fragments, in the mean over a segment of `max_rounds`.

    Args:
        linked: as of `federation.exchange.exchange_of`.
    """
    if rounds.update_mb != "auto":
        return Moved(rounds.update_mb, rounds.update_mb, rounds.update_mb)
    weights, last = parameters_of(training, vocab_size) / 1e6, 1 / rounds.max_rounds
    share = (1 - last) / rounds.fragments + last  # a segment's last round exchanges what is left
    coded = rounds.download(linked=linked) != "fp32"
    received = BYTES[rounds.download(linked=linked)] * weights * (share if coded else 1)
    state = 0.0
    if rounds.inner_state == "merged":
        state = BYTES[rounds.state(linked=linked)] * state_values_of(training, vocab_size) / 1e6
    apart = rounds.overlap or rounds.fragments > 1  # each site has its own until the segment ends
    between = state * last if apart else state
    return Moved(4 * weights + state, received + between, BYTES[rounds.upload_codec] * weights * share + between)
