"""The oracle of sites with batteries and on-site generation: below every schedule, and not by needless much."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation_cases import CADENCE, START, experiment, minutes, traces

from curtail_pipeline.simulation.compare import simulate, simulate_run
from curtail_pipeline.simulation.oracle import least_co2, least_co2_with_overheads

CELLS = 24
value = st.sampled_from([0.0, 20.0, 80.0, 300.0, 450.0])
sun = st.sampled_from([0.0, 0.3, 1.0, 2.5])
battery = st.fixed_dictionaries(
    {
        "capacity_kwh": st.sampled_from([0.5, 5.0]),
        "charge_kw": st.sampled_from([0.5, 3.0]),
        "discharge_kw": st.sampled_from([1.0, 3.0]),
        "charge_efficiency": st.sampled_from([1.0, 0.9]),
        "discharge_efficiency": st.sampled_from([1.0, 0.8]),
        "initial_share": st.sampled_from([0.0, 0.5]),
        "reserve_share": st.sampled_from([0.0, 0.2]),
    }
)
lost = st.sampled_from([{}, {"provisioning_s": 240, "connect_s": 20, "round_load_s": 60, "round_tail_s": 50}])


def generation(path: Path, values: list[float]) -> dict[str, str]:
    rows = [f"{START + i * CADENCE:%Y-%m-%dT%H:%M:%SZ},{kw}\n" for i, kw in enumerate(values)]
    path.write_text("time,kw\n" + "".join(rows))
    return {"path": str(path)}


def site(name: str, **parts: Any) -> dict[str, Any]:
    return {"name": name, "region": name, "training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.5, **parts}


@settings(max_examples=25, deadline=None)
@given(
    st.lists(value, min_size=CELLS, max_size=CELLS),
    st.lists(value, min_size=CELLS, max_size=CELLS),
    st.lists(sun, min_size=CELLS, max_size=CELLS) | st.none(),
    battery | st.none(),
    lost,
    st.sampled_from(["paper", "threshold", "boundary"]),
    st.booleans(),
)
def test_no_schedule_is_below_the_bounds(
    a: list[float],
    b: list[float],
    made: list[float] | None,
    stored: dict[str, float] | None,
    overheads: dict[str, float],
    policy: str,
    open_local: bool,
) -> None:
    with TemporaryDirectory() as folder:
        on_site = None if made is None else generation(Path(folder) / "sun.csv", made)
        run = experiment(
            sites=[site("A", battery=stored, on_site=on_site), site("B")],
            overheads=overheads,
            policy={"name": policy},
            rounds={"round_s": 600, "open_local": open_local, "max_rounds": 99},
        )
        done = simulate_run(run, traces({"A": a, "B": b}))
    walk, view = done.walk, done.view
    if not walk.steps:
        return
    free = least_co2(view, walk.steps, walk.start, view.end_us)
    bound = least_co2_with_overheads(view, walk.steps, walk.start, view.end_us)
    assert free is not None and bound is not None, "what was done can be done"
    assert free.co2_kg <= bound.co2_kg + 1e-6
    assert bound.co2_kg <= done.account.co2_kg + 1e-6


def test_generation_is_taken_off_exactly(tmp_path: Path) -> None:
    """Half of the second hour's power is the site's own: that hour at 100 g is cheaper than the first at 60."""
    made = generation(tmp_path / "sun.csv", [0.0] * 12 + [1.0] * 12)
    run = experiment(sites=[site("A", on_site=made)], job={"steps": 2700})
    found = simulate(run, traces({"A": [60.0] * 12 + [100.0] * 12}), policy="forecast", deadline_h=2.0)
    hour, half = 1.0 * 0.1, 2.0 * 0.06 / 2
    assert found["oracle_co2_kg"] == pytest.approx(hour + half)
    assert found["co2_kg"] == pytest.approx(hour + half, rel=1e-3)


def test_a_battery_moves_clean_energy_and_its_price_is_what_was_paid_for_it() -> None:
    run = experiment(
        sites=[site("A", battery={"capacity_kwh": 10.0, "charge_kw": 2.0, "discharge_kw": 2.5})],
        policy={"name": "boundary"},
    )
    done = simulate_run(run, traces({"A": [50.0] * 12 + [450.0] * 12}))
    found = least_co2(done.view, done.walk.steps, done.walk.start, done.view.end_us)
    assert found is not None
    after = done.walk.steps / 1800 - 1  # hours on stored energy
    assert found.co2_kg == pytest.approx(2.0 * 0.05 + after * 2.0 * 0.05 / 0.95**2)
    assert found.co2_kg == pytest.approx(done.account.co2_kg, rel=2e-3), "less than a step is left in it"


def test_what_a_battery_begins_with_is_free_once() -> None:
    full = {"capacity_kwh": 1.0, "charge_kw": 1.0, "discharge_kw": 2.0, "initial_share": 1, "discharge_efficiency": 1}
    run = experiment(sites=[site("A", battery=full)], job={"steps": 1800})
    view = simulate_run(run, traces({"A": [300.0] * 12})).view
    found = least_co2(view, 1800, *(int(minutes(m).timestamp() * 1e6) for m in (0, 60)))
    assert found is not None
    assert found.co2_kg == pytest.approx((2.0 - 1.0) * 0.3, rel=1e-3), "1 of 2 kWh is from the grid"
