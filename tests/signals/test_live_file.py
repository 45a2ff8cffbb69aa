"""Files that somebody goes on writing, as a live source."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from micro import EXPERIMENT

from curtail_pipeline.errors import SettingsError, TraceError
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.settings.trace_settings import LiveFileTraces
from curtail_pipeline.signals.live_file import LiveFileProvider
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project, recorded_days
from curtail_pipeline.storage.tables import read_table, trace_key

START = datetime(2026, 5, 1, tzinfo=UTC)
HEADER = "time,NORTH,SOUTH\n"


def line(number: int, value: float) -> str:
    return f"{(START + timedelta(minutes=5 * number)).isoformat()},{value},{value + 1}\n"


def provider(path: Path | str) -> LiveFileProvider:
    return LiveFileProvider(LiveFileTraces(path=str(path)))


def values(source: LiveFileProvider, region: str = "NORTH") -> list[float]:
    found = source.ingest(region, START, START + timedelta(days=1)).trace
    return found.drop_nulls("value")["value"].to_list()


def test_what_is_appended_is_read_and_a_line_counts_once_it_is_whole(tmp_path: Path) -> None:
    """Half of a number is another number."""
    path = tmp_path / "moer.csv"
    known = [100.5 + 3 * n for n in range(12)]
    path.write_text(HEADER + "".join(line(n, value) for n, value in enumerate(known)))
    source, last = provider(path), line(12, 876.5)
    assert values(source) == known
    for written in range(len(last)):
        with path.open("a") as stream:
            stream.write(last[written])
        whole = written == len(last) - 1
        assert values(source) == ([*known, 876.5] if whole else known)
    assert values(source, "SOUTH")[-1] == 877.5


def test_a_file_that_takes_the_place_of_another_or_fits_the_pattern_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(HEADER + line(0, 300.0) + line(1, 310.0))
    source = provider(tmp_path / "*.csv")
    assert values(source) == [300.0, 310.0]
    (tmp_path / "b.csv").write_text(HEADER + line(2, 320.0))
    assert values(source) == [300.0, 310.0, 320.0]
    (tmp_path / "new").write_text(HEADER + line(0, 305.0) + line(1, 310.0))  # a revision as long as what it replaces
    (tmp_path / "new").replace(tmp_path / "a.csv")
    assert values(source) == [305.0, 310.0, 320.0]


def test_it_is_a_live_source(tmp_path: Path) -> None:
    """Nothing is read, and no file need be there, before the first question."""
    source = provider(tmp_path / "later.csv")
    assert (source.span(), source.files(), source.fingerprint()) == (None, [], "")
    with pytest.raises(TraceError, match=r"no trace file '.*later\.csv'"):
        source.regions()
    (tmp_path / "later.csv").write_text(HEADER + line(0, 300.0))
    assert source.regions() == ["NORTH", "SOUTH"]
    with pytest.raises(TraceError, match="has no region 'EAST'; it has NORTH, SOUTH"):
        source.ingest("EAST", START, START + timedelta(days=1))


@pytest.fixture
def project(tmp_path: Path) -> Project:
    path = tmp_path / "moer.csv"
    path.write_text(HEADER + "".join(line(n, 100.5 + 3 * n) for n in range(24)))
    return Project.open(parse_experiment(content(path, clock={"start": START}), "test"), "live", tmp_path / "home")


def content(path: Path, **more: object) -> dict[str, object]:
    sites = [site for site in EXPERIMENT["sites"] if site["region"] in HEADER]
    corpus = {"source": str(path), **EXPERIMENT["corpus"]}
    return {
        **EXPERIMENT,
        "sites": sites,
        "corpus": corpus,
        "traces": {"provider": "live_file", "path": str(path)},
    } | more


def stored(project: Project) -> list[float]:
    save_ingested(project, ingest_day(project, "NORTH", START.date()))
    return read_table(project.store, trace_key(START.date().isoformat(), "NORTH"))["value"].to_list()


def test_a_home_goes_on_with_what_was_written_since(project: Project, tmp_path: Path) -> None:
    assert len(stored(project)) == 24
    with (tmp_path / "moer.csv").open("a") as stream:
        stream.write(line(24, 50.5))
    assert stored(project)[-1] == 50.5
    again = Project.open(project.experiment, "live", tmp_path / "home")
    assert again.home.record() == project.home.record()


def test_what_a_file_keeps_no_longer_stays_in_the_store(project: Project, tmp_path: Path) -> None:
    """A file may hold its newest rows alone; what it holds replaces what was stored."""
    before = stored(project)
    (tmp_path / "moer.csv").write_text(HEADER + "".join(line(n, 201.5 + n) for n in range(20, 30)))
    assert stored(project) == [*before[:20], *(201.5 + n for n in range(20, 30))]


def test_the_time_before_a_feed_began_is_no_gap(tmp_path: Path) -> None:
    """Of its first day, also when it holds the day no longer. What it leaves out since then is one."""
    path, day = tmp_path / "moer.csv", START.date()
    path.write_text(HEADER + "".join(line(n, 0.5 + n) for n in range(264, 288)))  # from 22:00 on
    project = Project.open(parse_experiment(content(path, clock={"start": START}), "test"), "live", tmp_path / "home")
    assert not ingest_day(project, "NORTH", day).blocked
    before = stored(project)
    path.write_text(HEADER + "".join(line(n, 400.5 + n) for n in range(288, 300)))  # the next day alone
    again = ingest_day(project, "NORTH", day)
    assert not again.blocked and again.table["value"].to_list() == before
    path.write_text(HEADER + line(0, 300.5) + "".join(line(n, 0.5 + n) for n in range(264, 288)))
    assert [check.name for check in ingest_day(project, "NORTH", day).blocked] == ["gaps"]


def test_a_day_before_a_feed_began_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "moer.csv"
    path.write_text(HEADER + "".join(line(n, 400.5 + n) for n in range(288, 300)))
    project = Project.open(parse_experiment(content(path, clock={"start": START}), "test"), "live", tmp_path / "home")
    blocked = {check.name: check.description for check in ingest_day(project, "NORTH", START.date()).blocked}
    assert "no stamps at all" in blocked["gaps"]


def test_its_days_are_told_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CURTAIL_HOME", str(tmp_path))
    there = parse_experiment(content(tmp_path / "no.csv", clock={"start": START}), "test")
    assert recorded_days(there) == (START.date(), None)
    lost = Project.open(parse_experiment(content(_one_line(tmp_path), name="other"), "test"), "live", tmp_path / "home")
    with pytest.raises(SettingsError, match=r"a live signal has no first value; give clock\.start"):
        _ = lost.start


def _one_line(folder: Path) -> Path:
    path = folder / "one.csv"
    path.write_text(HEADER + line(0, 300.0))
    return path
