"""What a figure rests on, by the ledger's rows."""

import polars as pl
import pytest
from simulation_cases import START, minutes
from test_grams import at, power, site, trace

from curtail_pipeline.emissions.basis import basis_of, clock_of, label_of, synthetic_regions
from curtail_pipeline.emissions.grams import ledger

BOOKED = (START, minutes(60))


def test_only_rounds_of_an_open_plan_inside_the_time_booked_were_lived_through() -> None:
    rounds = [(minutes(1), minutes(20)), (minutes(21), minutes(60))]
    assert clock_of(rounds, BOOKED, planned=False) == "wall"
    assert clock_of(rounds, BOOKED, planned=True) == "virtual", "a headless run"
    assert clock_of([], BOOKED, planned=False) == "virtual", "nothing tells"
    assert clock_of([(minutes(90), minutes(99))], BOOKED, planned=False) == "virtual", "a replay of recorded time"


def test_a_sum_is_no_better_than_its_worst_row() -> None:
    lived = ledger(power((0, 600, 1.0)), trace([1.0] * 9), [site()], clock="wall")
    planned = ledger(power((0, 600, 1.0), key="ckpt-000002"), trace([1.0] * 9), [site()], synthetic=["R"])
    assert label_of(lived) == "modelled power"
    assert label_of(planned) == "projected (virtual time, modelled power), synthetic signal"
    assert label_of(pl.concat([lived, planned])) == label_of(planned)
    measured = lived.with_columns(power=pl.lit("measured"))
    assert label_of(measured) == "measured power"
    assert label_of(measured, synthetic=True) == "measured power, synthetic signal"
    without = lived.with_columns(battery_kwh=pl.lit(None, pl.Float64))
    assert label_of(without) == "modelled power", "no battery is none, not unknown"
    assert basis_of(lived.clear()) is None is label_of(None)
    assert lived["start"][0] == at(0)


@pytest.mark.parametrize("sources", [["file:mci.csv", "synthetic"], ["synthetic", "file:mci.csv"]])
def test_one_made_up_source_among_combined_ones_is_enough(sources: list[str]) -> None:
    rows = pl.DataFrame({"region": ["A", "B"], "source": sources})
    assert synthetic_regions(rows) == {"A" if sources[0] == "synthetic" else "B"}
    assert synthetic_regions(rows.drop("source")) == set()
