"""Units as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from curtail_pipeline.settings.trace_settings import FileTraces, Kind, Unit
from curtail_pipeline.settings.unit_names import said_unit

MASSES = {"g": 1.0, "kg": 1000.0, "t": 1e6, "tonnes": 1e6, "MT": 1e6, "lb": 453.59237, "lbs": 453.59237}
ENERGIES = {"kWh": 1.0, "MWh": 1000.0, "GWh": 1e6}
FACTORS: dict[Unit, float] = {"g/kWh": 1.0, "kg/kWh": 1000.0, "lb/MWh": 0.45359237}


@given(
    mass=st.sampled_from(sorted(MASSES)),
    energy=st.sampled_from(sorted(ENERGIES)),
    gas=st.sampled_from(["", "CO2", "CO2e", "CO₂eq", " CO2", "_co2", " CO2-eq"]),
    slash=st.sampled_from(["/", " per ", "_per_", " / "]),
    around=st.sampled_from(["{}", "R ({})", "MOER [{}]", "R_{}", "R, {}"]),
    upper=st.booleans(),
)
def test_an_intensitys_unit_is_the_one_of_its_name(
    mass: str, energy: str, gas: str, slash: str, around: str, upper: bool
) -> None:
    name = around.format(f"{mass}{gas}{slash}{energy}")
    said = said_unit(name.upper() if upper else name)
    assert said is not None and "marginal_intensity" in said.kinds
    factor = MASSES[mass] / ENERGIES[energy]
    expected = next((unit for unit, own in FACTORS.items() if abs(own - factor) < 1e-9), None)
    assert said.unit == expected


@given(st.sampled_from(["CAISO_NORTH", "DE", "R", "BZN|DE-LU", "G", "TH_NP15_GEN-APND", "MOER", "NEM_SA", "kg", "lb"]))
def test_a_regions_name_says_no_unit(name: str) -> None:
    assert said_unit(name) is None


@pytest.mark.parametrize(
    ("name", "kind", "unit"),
    [
        ("LBMP ($/MWHr)", "price", "currency/MWh"),
        ("DE-LU [€/MWh]", "price", "currency/MWh"),
        ("AUD/MWh", "price", "currency/MWh"),
        ("DE (ct/kWh)", "price", None),
        ("EUR/GJ", "price", None),
        ("円/kWh", "price", None),
        ("Total_Curtailment_NP15_MW", "curtailed_power", "MW"),
        ("Wind GW", "curtailed_power", None),
        ("curtailed MWh", "curtailed_power", None),
    ],
)
def test_units_of_prices_and_powers(name: str, kind: Kind, unit: Unit | None) -> None:
    said = said_unit(name)
    assert said is not None and said.kinds == {kind} and said.unit == unit


@pytest.mark.parametrize("name", ["R (gCO2/MJ)", "R kg/GJ", "CO2 [t/h]", "lbs CO2 per hour", "R tCO2/TJ"])
def test_masses_per_heat_or_time_are_no_unit_of_intensities(name: str) -> None:
    said = said_unit(name)
    assert said is not None and "marginal_intensity" in said.kinds and said.unit is None


@pytest.mark.parametrize(
    ("written", "kind", "unit"),
    [
        ("kg/MWh", "marginal_intensity", "g/kWh"),
        ("tCO2/GWh", "marginal_intensity", "g/kWh"),
        ("gCO2eq/kWh", "marginal_intensity", "g/kWh"),
        ("t/MWh", "marginal_intensity", "kg/kWh"),
        ("lbs/MWh", "marginal_intensity", "lb/MWh"),
        ("EUR/MWh", "price", "currency/MWh"),
        ("$/MWh", "price", "currency/MWh"),
        ("mw", "curtailed_power", "MW"),
        ("currency/MWh", "price", "currency/MWh"),
    ],
)
def test_a_declared_unit_may_be_spelled_otherwise(written: str, kind: Kind, unit: Unit) -> None:
    assert FileTraces.model_validate({"path": "t.csv", "kind": kind, "unit": written}).unit == unit
    column = FileTraces.model_validate(
        {"path": "t.csv", "columns": {"A": {"region": "A", "kind": kind, "unit": written}}}
    )
    assert column.columns["A"].unit == unit  # type: ignore[union-attr]


@pytest.mark.parametrize("written", ["g/MJ", "EUR/kWh", "GW", "MWh", "in kg/MWh", "", 5, None])
def test_other_units_are_refused(written: object) -> None:
    if written is None:
        assert FileTraces.model_validate({"path": "t.csv", "unit": None}).unit is None
        return
    with pytest.raises(ValidationError, match="Input should be 'g/kWh', 'kg/kWh', 'lb/MWh'"):
        FileTraces.model_validate({"path": "t.csv", "unit": written})


@pytest.mark.parametrize("written", ["\t", "\\t", "tab"])
def test_a_tab_may_be_written_as_a_text(written: str) -> None:
    assert FileTraces.model_validate({"path": "t.csv", "separator": written}).separator == "\t"
