"""What `auto` codecs are."""

import pytest

from curtail_pipeline.federation.exchange import Exchange, exchange_of
from curtail_pipeline.settings.federation_settings import RoundSettings


@pytest.mark.parametrize(
    ("settings", "linked", "exchange"),
    [
        ({}, False, ("fp32", "fp32", "fp32")),
        ({}, True, ("fp32", "int4", "int4")),
        ({"upload_codec": "int8", "state_codec": "bf16"}, True, ("int8", "int4", "bf16")),
        ({"upload_codec": "int2", "download_codec": "int2"}, False, ("int2", "int2", "fp32")),
    ],
)
def test_codecs_follow_where_bytes_are_dear(settings: dict, linked: bool, exchange: tuple) -> None:
    upload, download, state = exchange
    rounds = RoundSettings.model_validate(settings)
    asked = Exchange(upload=upload, download=download, state=state, overlap=rounds.overlap)
    assert exchange_of(rounds, linked=linked) == asked
