"""What a round moves over a link, by model, codecs and fragments."""

from typing import Any

import pytest
from training_case import make_experiment

from curtail_pipeline.federation.codecs import CODECS
from curtail_pipeline.settings.exchange_size import BYTES, Moved, moved
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.federation_settings import RoundSettings
from curtail_pipeline.settings.training_settings import TrainingSettings

LINK = {"up_mbit_s": 80, "down_mbit_s": 160, "rtt_ms": 0}


def of_a_d20(*, linked: bool = False, **rounds: Any) -> Moved:
    return moved(RoundSettings(**rounds), TrainingSettings(preset="d20"), 65_536, linked=linked)


def test_a_value_has_the_bytes_of_its_record() -> None:
    assert {name: codec.record / codec.block for name, codec in CODECS.items()} | {"fp32": 4} == BYTES


@pytest.mark.parametrize(
    ("codec", "megabytes"),
    [("fp32", 2_244), ("bf16", 1_122), ("int8", 570), ("int4", 298), ("int2", 153), ("int2_topk", 68)],
)
def test_updates_of_a_d20(codec: str, megabytes: float) -> None:
    found = of_a_d20(upload_codec=codec, inner_state="own")
    assert (found.first, found.received) == (pytest.approx(2_244, abs=1), pytest.approx(2_244, abs=1))
    assert found.sent == pytest.approx(megabytes, abs=1)


@pytest.mark.parametrize(("codec", "megabytes"), [("fp32", 2_915), ("int8", 740), ("int4", 387), ("int2", 199)])
def test_merged_states_travel_both_ways(codec: str, megabytes: float) -> None:
    own, merged = (of_a_d20(inner_state=state, state_codec=codec) for state in ("own", "merged"))
    assert [b - a for a, b in zip(own, merged, strict=True)] == [pytest.approx(megabytes, abs=1)] * 3


def test_sites_behind_links_get_the_step_by_int4_unless_told_otherwise() -> None:
    own = {"upload_codec": "int4", "inner_state": "own"}
    assert of_a_d20(linked=True, **own).received == pytest.approx(298, abs=1)
    assert of_a_d20(linked=True, download_codec="int2", **own).received == pytest.approx(153, abs=1)


def test_a_segments_last_round_has_all_that_fragments_left() -> None:
    whole, fragments = (
        of_a_d20(linked=True, upload_codec="int4", inner_state="merged", max_rounds=12, fragments=n) for n in (1, 4)
    )
    assert fragments.sent == pytest.approx((298 + 387 + 11 * 298 / 4) / 12, abs=1)
    assert fragments.received == pytest.approx(fragments.sent) and fragments.first == whole.first


def linked(**rounds: Any) -> Experiment:
    content = make_experiment().model_dump(mode="json")
    content["sites"][0]["link"] = LINK
    return parse_experiment({**content, "rounds": rounds}, "linked")


def test_a_link_is_charged_without_being_told_how_much_comes_by_it() -> None:
    experiment = linked(round_s=600)
    size, found = experiment.moved, experiment.overheads_of(experiment.sites[0])
    assert size.received > 0
    assert found.first_load_s == found.round_load_s == pytest.approx(size.received / 20)
    assert found.round_tail_s == found.round_tail_single_s == pytest.approx(size.sent / 10)
    told = linked(round_s=600, update_mb=200)
    assert told.overheads_of(told.sites[0]).round_tail_s == 20
    assert linked(update_mb=0).overheads_of(experiment.sites[0]) == experiment.overheads
    assert make_experiment().overheads_of(make_experiment().sites[0]) == experiment.overheads


def test_what_overlaps_is_waited_for_where_it_takes_longer_than_a_round() -> None:
    hidden = linked(update_mb=200, overlap=True, upload_codec="int4", round_s=31)
    found = hidden.overheads_of(hidden.sites[0])
    assert (found.first_load_s, found.round_load_s, found.round_tail_s) == (10, 0, 0)
    longer = linked(update_mb=200, overlap=True, upload_codec="int4", round_s=20)
    assert longer.overheads_of(longer.sites[0]).round_tail_s == 10
