"""What share of a round a site does not train, projected from measured bytes and seconds."""

from collections.abc import Mapping
from typing import Final, NamedTuple

from curtail_pipeline.settings.federation_settings import CodecName, DownloadName

PARAMETERS: Final = 560_988_160
"""Of a d20, which is projected to."""
ROUND_S: Final = 600.0
LINK_MBIT_S: Final = 100.0
"""Each way."""
DOWN: Final[Mapping[CodecName, DownloadName]] = {"int2_topk": "int2"}
"""How the merge's step goes back where an update's codec is none for that; by the same one elsewhere."""


class ExchangeCosts(NamedTuple):
    """One exchange of a site, from its last step to its next one."""

    up_bytes: float
    down_bytes: float
    encode_s: float
    """At the site: of what it moved."""
    merge_s: float
    decode_s: float
    """At the site: of what it gets."""

    def scaled(self, factor: float) -> "ExchangeCosts":
        """Of a model with so many times the parameters: every part of it is linear in them."""
        return ExchangeCosts(*(part * factor for part in self))

    def on(self, cores: int) -> "ExchangeCosts":
        """Of processor seconds, what so many cores take: all of it is done piece by piece, by as many threads."""
        return self._replace(
            encode_s=self.encode_s / cores, merge_s=self.merge_s / cores, decode_s=self.decode_s / cores
        )

    def transfer_s(self, mbit_s: float) -> float:
        """Both ways, one after the other."""
        return 8e-6 * (self.up_bytes + self.down_bytes) / mbit_s


def not_training(
    costs: ExchangeCosts, *, round_s: float = ROUND_S, mbit_s: float = LINK_MBIT_S, overlap: bool = False
) -> float:
    """Share of a round in which a site does not train, between 0 and 1.

    Without overlap it waits for the whole exchange. With overlap the bytes travel and are merged while the next round
    trains; the site's own encoding and decoding stops it all the same, and so does what does not fit into a round.

    Args:
        round_s: seconds from a round's start to the next one's.
        mbit_s: of the site's link, each way; 10^6 bits.

    Raises:
        ValueError: a length or a rate that is not positive.
    """
    if round_s <= 0 or mbit_s <= 0:
        raise ValueError(f"a round of {round_s:g} s over {mbit_s:g} Mbit/s cannot be; give positive ones")
    own, beside = costs.encode_s + costs.decode_s, costs.transfer_s(mbit_s) + costs.merge_s
    waiting = own + (max(0.0, beside - round_s) if overlap else beside)
    return min(1.0, waiting / round_s)
