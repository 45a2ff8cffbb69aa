from datetime import timedelta
from itertools import groupby

import numpy as np
import polars as pl
import pytest

from curtail_pipeline.settings.experiment import load_experiment
from curtail_pipeline.settings.trace_settings import SyntheticTraces
from curtail_pipeline.signals.provider import make_provider
from curtail_pipeline.signals.synthetic import simulate
from curtail_pipeline.signals.trace import TRACE_SCHEMA

SITES = ("CAISO_NORTH", "SPP_TX", "NEM_SA")
DAY = timedelta(days=1)


def stretches(values: np.ndarray) -> list[tuple[object, int]]:
    return [(key, len(list(run))) for key, run in groupby(values.tolist())]


@pytest.mark.parametrize("day", [0, 1, 2])
def test_each_laptop_day_has_pauses_local_and_federated_stretches(day: int) -> None:
    traces = load_experiment("laptop").traces
    assert isinstance(traces, SyntheticTraces)
    provider = make_provider(traces)
    start = traces.start + day * DAY
    low = np.array([(provider.fetch(site, start, start + DAY)["value"] < 100).to_numpy() for site in SITES])
    for site, row in zip(SITES, low, strict=True):
        windows = [n for curtailed, n in stretches(row) if curtailed and n >= 6]
        assert len(windows) >= 2, f"{site} has {windows}"
    members = stretches(np.minimum(low.sum(axis=0), 2))
    long = [count for count, n in members if n >= 9]
    assert long.count(0) >= 1
    assert long.count(1) >= 2
    assert long.count(2) >= 2


def test_values_are_bimodal_and_windows_last_hours() -> None:
    start = load_experiment("laptop").traces.start
    values = simulate(SITES, start, start + 60 * DAY, seed=1)["marginal_intensity"]
    low = values < 100
    assert values[low].max() <= 70
    assert np.quantile(values[~low], 0.01) > 350
    assert values.max() < 950
    lengths = [n / 12 for row in low for curtailed, n in stretches(row) if curtailed and n >= 6]
    assert 1 < np.median(lengths) < 5
    assert np.all((low.mean(axis=1) > 0.1) & (low.mean(axis=1) < 0.6))


def test_a_value_does_not_depend_on_the_range_or_the_other_regions() -> None:
    start = load_experiment("laptop").traces.start
    whole = simulate([*SITES, "ELSEWHERE"], start, start + 4 * DAY, seed=3)
    for region, cut_from, cut_to in [(0, 0, 288), (2, 290, 700), (3, 1000, 1152)]:
        name = [*SITES, "ELSEWHERE"][region]
        step = timedelta(minutes=5)
        part = simulate([name], start + cut_from * step, start + cut_to * step, seed=3)
        for kind, values in part.items():
            assert np.array_equal(values[0], whole[kind][region, cut_from:cut_to])


def test_curtailed_power_price_and_intensity_agree() -> None:
    traces = SyntheticTraces(start="2026-03-21T00:00:00Z", days=2, seed=5)
    provider = make_provider(traces)
    intensity, power, price = (
        provider.fetch("NEM_SA", traces.start, traces.start + 2 * DAY, kind)
        for kind in ("marginal_intensity", "curtailed_power", "price")
    )
    assert intensity.schema == pl.Schema(TRACE_SCHEMA)
    assert set(power["unit"]) == {"MW"} and set(price["unit"]) == {"currency/MWh"}
    assert set(intensity["source"]) == {"synthetic"}
    curtailed = intensity["value"] < 100
    assert curtailed.any()
    assert (power.filter(~curtailed)["value"] == 0).all()
    assert (price.filter(curtailed)["value"] <= 0).all() and (price.filter(~curtailed)["value"] > 0).all()


def test_another_seed_gives_another_trace_and_fingerprint() -> None:
    one, two = (SyntheticTraces(start="2026-03-21T00:00:00Z", seed=seed) for seed in (1, 2))
    a, b = make_provider(one), make_provider(two)
    assert a.fingerprint() != b.fingerprint()
    assert not a.fetch("DE", one.start, one.start + DAY)["value"].equals(
        b.fetch("DE", one.start, one.start + DAY)["value"]
    )


def test_thousands_of_regions_in_one_call_each_with_its_own_values() -> None:
    traces = SyntheticTraces(start="2026-03-21", seed=5)
    names = [f"REGION_{i}" for i in range(1500)]
    found = simulate(names, traces.start, traces.start + DAY, seed=5)
    values = found["marginal_intensity"]
    assert values.shape == (1500, 288) and np.isfinite(values).all()
    assert len(np.unique(values, axis=0)) == 1500
    assert 0.02 < (values < 100).mean() < 0.6
    one = make_provider(traces).fetch("REGION_700", traces.start, traces.start + DAY)["value"].to_numpy()
    assert np.array_equal(one, values[700])
