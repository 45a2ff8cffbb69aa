"""Calls to a SuperLink that is away for a while."""

from pathlib import Path

import pytest

from curtail_pipeline.errors import FederationError
from curtail_pipeline.flower.local import Federation
from curtail_pipeline.flower.standing import StandingFederation
from curtail_pipeline.flower.submit import _patiently


class SuperLink:
    def __init__(self, away: int) -> None:
        self.away, self.pauses = away, list[float]()

    def call(self) -> str:
        self.away -= 1
        if self.away >= 0:
            raise FederationError("no SuperLink answers at 127.0.0.1:1 (ConnectError)")
        return "answer"


def test_a_call_waits_with_backoff_for_a_superlink_that_starts_again(tmp_path: Path) -> None:
    link, standing = SuperLink(5), StandingFederation(tmp_path, start_timeout_s=60)
    assert _patiently(standing, link.call, link.pauses.append) == "answer"
    assert link.pauses == [0.25, 0.5, 1.0, 2.0, 4.0]  # 8 s and no more than 5 s late


def test_a_call_gives_up_in_time_and_at_once_where_nobody_will_start_one(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="no SuperLink answers"):
        _patiently(StandingFederation(tmp_path, start_timeout_s=0.1), SuperLink(99).call)
    link = SuperLink(99)
    with pytest.raises(FederationError, match="no SuperLink answers"):
        _patiently(Federation(tmp_path), link.call, link.pauses.append)  # no supervisor in this folder
    assert link.pauses == []
