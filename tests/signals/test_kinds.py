"""Columns that are no intensity by their names are never read as regions unasked."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from curtail_pipeline.errors import TraceError
from curtail_pipeline.settings.trace_settings import FileTraces
from curtail_pipeline.signals.files import FileProvider
from curtail_pipeline.signals.kinds import require_believable_names, require_intensity_names

START = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "name",
    ["R_percent_renewable", "renewables %", "temperature", "MOER version", "frequency", "load", "WindShare",
     "R_percentile", "health_damage", "wind_speed", "Solar", "R_std", "uncertainty", "n_samples", "duration_min",
     "lat"],
)  # fmt: skip
def test_what_is_published_beside_intensities_is_no_region(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    lines = [f"{START + timedelta(hours=k):%Y-%m-%dT%H:%MZ},{480 + k},{40 + k}" for k in range(24)]
    path.write_text("\n".join([f"time,R,{name}", *lines]))
    with pytest.raises(TraceError, match="holds no intensity by its name, and would be read as a region's intensity"):
        FileProvider(FileTraces(path=str(path))).regions()
    assert FileProvider(FileTraces(path=str(path), columns={"R": "R"})).regions() == ["R"]
    assert FileProvider(FileTraces(path=str(path), kind="marginal_intensity")).regions() == ["R", name]


def test_a_forecast_beside_the_measured_values_is_no_region() -> None:
    with pytest.raises(TraceError, match="'forecast' holds a forecast by its name"):
        require_intensity_names("t.csv", ["actual", "forecast"])


def test_names_of_regions_are_none_of_it() -> None:
    names = ["CAISO_NORTH", "SPP_TX", "NEM_SA", "DE", "LZ_WEST", "TH_NP15_GEN-APND", "N.Y.C.", "moer", "Portland", "R"]
    require_intensity_names("t.csv", names)
    require_believable_names("t.csv", names)


@pytest.mark.parametrize(
    "name",
    ["RTLMP", "da_lmp", "DALMP", "MCPE", "OMEL", "Day-ahead", "preço", "Prijs", "hinta", "energy_charge", "SpotPris"],
)
def test_a_price_in_any_market_is_named(name: str) -> None:
    with pytest.raises(TraceError, match=f"{name!r} holds a price by its name"):
        require_believable_names("t.csv", [name])


@pytest.mark.parametrize(
    "name", ["curtailment", "Curtailed", "Wind_Curtailment", "CURTAILED_MW", "UIGF", "spilled", "Abregelung"]
)
def test_curtailed_power_is_no_intensity(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    lines = [f"{START + timedelta(hours=k):%Y-%m-%dT%H:%MZ},{700 + k if 10 <= k < 14 else 5}" for k in range(24)]
    path.write_text("\n".join([f"time,{name}", *lines]))
    with pytest.raises(TraceError, match=f"{name!r} holds curtailed power by its name.*--kind curtailed_power"):
        FileProvider(FileTraces(path=str(path))).regions()
    assert FileProvider(FileTraces(path=str(path), kind="curtailed_power")).regions() == [name]


def test_ends_of_intervals_in_words_are_no_region(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for begin, end, form in [("Apr 01, 2024 {:02}:00", "Apr 01, 2024 {:02}:59", "%b %d, %Y %H:%M"),
                             ("2024-04-01 {:02}:00", "{:02}:59", None)]:  # fmt: skip
        lines = [f'"{begin.format(k)}","{end.format(k)}",{400 + k}' for k in range(24)]
        path.write_text("\n".join(["Start,End,R", *lines]))
        assert FileProvider(FileTraces(path=str(path), time_format=form)).regions() == ["R"]
