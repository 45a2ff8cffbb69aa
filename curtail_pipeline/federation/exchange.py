"""How a plan's sites and its server exchange what was trained."""

from curtail_pipeline.settings.federation_settings import CodecName, DownloadName, RoundSettings, StateCodecName
from curtail_pipeline.storage.records import Record


class Exchange(Record):
    """How updates, new weights and merged inner states travel."""

    upload: CodecName = "fp32"
    download: DownloadName = "fp32"
    state: StateCodecName = "fp32"
    overlap: bool = False
    """Whether a round is merged while the next one trains (`delayed`)."""


def exchange_of(rounds: RoundSettings) -> Exchange:
    """What the settings ask for."""
    return Exchange(
        upload=rounds.upload_codec, download=rounds.download_codec, state=rounds.state_codec, overlap=rounds.overlap
    )
