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
    "name", ["R_percent_renewable", "renewables %", "temperature", "MOER version", "frequency", "load", "WindShare"]
)
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
