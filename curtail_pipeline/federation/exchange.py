"""How a plan's sites and its server exchange what was trained."""

from pydantic import Field

from curtail_pipeline.settings.federation_settings import CodecName, DownloadName, RoundSettings, StateCodecName
from curtail_pipeline.storage.records import Record


class Exchange(Record):
    """How updates, new weights and merged inner states travel."""

    upload: CodecName = "fp32"
    download: DownloadName = "fp32"
    state: StateCodecName = "fp32"
    overlap: bool = False
    """Whether a round is merged while the next one trains (`delayed`)."""
    fragments: int = Field(default=1, ge=1)
    """How many there are of the weights, of which a round exchanges one (`fragments`)."""


def exchange_of(rounds: RoundSettings, *, linked: bool) -> Exchange:
    """What the settings ask for.

    Args:
        linked: whether sites reach the store by addresses alone (`federation.linked`), over links of their own.
    """
    return Exchange(
        upload=rounds.upload_codec,
        download=rounds.download(linked=linked),
        state=rounds.state(linked=linked),
        overlap=rounds.overlap,
        fragments=rounds.fragments,
    )
