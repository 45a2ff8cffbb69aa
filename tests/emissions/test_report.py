import io
import json
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from typing import Any

import polars as pl
import pytest
import yaml

from curtail_pipeline.emissions.baselines import always_on_baselines, compare_baselines
from curtail_pipeline.emissions.chart_style import dark_rules, to_png
from curtail_pipeline.emissions.charts import MOST_POINTS, Step, signal_steps
from curtail_pipeline.emissions.formats import mass, percent, short
from curtail_pipeline.emissions.grams import accounting_signals, intervals_table, ledger, totals, totals_by
from curtail_pipeline.emissions.model_card import CardInput, model_card
from curtail_pipeline.emissions.report import (
    CHARTS,
    HELDOUT_SCHEMA,
    LOSS_SCHEMA,
    ReportInput,
    build_charts,
    build_report,
    summary,
)
from curtail_pipeline.emissions.report_files import report_files
from curtail_pipeline.settings.sites import Site
from curtail_pipeline.storage.manifest import Manifest, make_manifest

START = datetime(2026, 1, 11, 17, tzinfo=UTC)
SITES = [
    Site(name=name, region=region, training_kw=2.0, idle_kw=0.5, steps_per_s=0.01)
    for name, region in (("A", "A"), ("B", "R2"))
]


def at(minutes: float) -> datetime:
    return START + timedelta(minutes=minutes)


def manifest(n: int, mode: str, first: float, last: float, members: list[str]) -> Manifest:
    intervals = [
        {"site": site, "state": state, "start": at(a), "end": at(b), "kw": kw}
        for site in members
        for state, a, b, kw in (
            ("start_up", first, first + 5, 0.5),
            ("idle", first + 5, first + 10, 0.5),
            ("training", first + 10, last, 2.0),
        )
    ]
    done = {"steps": 10, "tokens": 1000, "consumed": [], "inner_state": {"begin": "fresh", "end": "fresh"}}
    total = (0, 10, 30)[n]
    return make_manifest(
        {
            "key": f"ckpt-{n:06d}",
            "parent": f"ckpt-{n - 1:06d}" if n else None,
            "parent_manifest_sha256": "a" * 64 if n else None,
            "mode": mode,
            "members": members,
            "stop_reason": "SPP leaves: signal <script>alert(1)</script>" if n == 2 else "length cap",
            "generation": n,
            "attempt": 0,
            "experiment_sha256": "e" * 64,
            "seed": 0,
            "start": at(first),
            "end": at(last),
            "steps": {"begin": 0, "end": total},
            "tokens": {"segment": 1000 * len(members), "total": 100 * total},
            "rounds": 1 if n else 0,
            "ledger": {},
            "sites": dict.fromkeys(members, done),
            "intervals": intervals,
            "files": {"model.safetensors": {"sha256": "f" * 64, "bytes": 1}},
            "versions": {},
        }
    )


def build(source: str = "file", hours: int = 12, low: float = 40.0) -> ReportInput:
    manifests = [
        manifest(0, "init", 0, 0, []),
        manifest(1, "local", 60, 120, ["A"]),
        manifest(2, "federated", 120, 180, ["A", "B"]),
    ]
    stamps = [START + timedelta(minutes=5 * i) for i in range(hours * 12)]
    traces = pl.concat(
        pl.DataFrame({"time": stamps}, schema={"time": pl.Datetime("us", "UTC")}).with_columns(
            region=pl.lit(region),
            value=pl.when(pl.col("time").is_between(at(60), at(170), closed="left")).then(low).otherwise(500.0),
            kind=pl.lit("marginal_intensity"),
            unit=pl.lit("g/kWh"),
            source=pl.lit(source),
        )
        for region in ("A", "R2")
    )
    windows = pl.DataFrame(
        [("A", at(60), at(180)), ("B", at(120), None)],
        schema={"site": pl.String, "start": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")},
        orient="row",
    )
    intervals = pl.concat(intervals_table(m.intervals, m.key) for m in manifests)
    signals = accounting_signals(traces)
    table = ledger(intervals, signals, SITES, windows)
    return ReportInput(
        name="try <i>& see",
        experiment_sha256="e" * 64,
        policy="paper",
        sites=SITES,
        manifests=manifests,
        traces=traces,
        signals=signals,
        windows=windows,
        intervals=intervals,
        ledger=table,
        baselines=compare_baselines(always_on_baselines(30, START, SITES, signals, ["DE"]), totals(table)),
        losses=pl.DataFrame(
            [("ckpt-000001", "A", at(120), 1000, 8.0), ("ckpt-000002", "B", at(180), 3000, 7.0)],
            schema=LOSS_SCHEMA,
            orient="row",
        ),
        heldout=pl.DataFrame(
            [("ckpt-000001", at(120), 1000, 8.1), ("ckpt-000002", at(180), 3000, 7.25)],
            schema=HELDOUT_SCHEMA,
            orient="row",
        ),
        threshold=100.0,
        written=at(600),
        tool_version="1.2.3",
    )


class Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href", "data"}:
                self.links.append(str(value))
            if name == "id":
                self.ids.append(str(value))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def data() -> ReportInput:
    return build()


@pytest.fixture(scope="module")
def files(data: ReportInput) -> dict[str, bytes]:
    return report_files(data)


@pytest.fixture(scope="module")
def page(files: dict[str, bytes]) -> str:
    return files["index.html"].decode()


def test_page_needs_nothing_from_elsewhere(page: str) -> None:
    reader = Reader()
    reader.feed(page)
    assert "script" not in reader.tags and "link" not in reader.tags and "img" not in reader.tags
    assert all(link.startswith("#") for link in reader.links)
    outside = {url for url in re.findall(r"https?://[^\"'\s<)]+", page) if "www.w3.org" not in url}
    assert outside == set() and "@import" not in page and "url(http" not in page
    assert reader.tags.count("svg") == 2 * len(CHARTS), "each chart for a wide and for a narrow screen"
    assert len(reader.ids) == len(set(reader.ids)), "clip paths of one chart must not apply to another"
    for reference in re.findall(r"url\(#([^)]+)\)", page):
        assert reference in reader.ids


def test_page_says_what_happened(page: str, data: ReportInput) -> None:
    reader = Reader()
    reader.feed(page)
    numbers = summary(data)
    for expected in (
        "try <i>& see",
        mass(numbers.ours.co2_g),
        percent(numbers.ours.curtailed_share),
        "ckpt-000002",
        "7.250",
        "B (R2)",
        "no gCO2/kWh trace for DE",
        "<script>alert(1)</script>",
        "3 k tokens",
    ):
        assert expected in reader.text, expected
    assert "Synthetic" not in reader.text and "not in the emissions" not in reader.text
    for chart in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        ElementTree.fromstring(chart)


def test_each_figure_and_its_data_are_files(data: ReportInput, page: str, files: dict[str, bytes]) -> None:
    charts = build_charts(data)
    for name in charts:
        ElementTree.fromstring(files[f"{name}.svg"])
        assert files[f"{name}.png"].startswith(b"\x89PNG")
    ledger_back = pl.read_parquet(io.BytesIO(files["ledger.parquet"]))
    assert ledger_back.equals(data.ledger)
    assert pl.read_csv(io.BytesIO(files["ledger.csv"]))["co2_g"].sum() == pytest.approx(totals(data.ledger).co2_g)
    found, numbers = json.loads(files["totals.json"]), summary(data)
    assert found["co2_g"] == numbers.ours.co2_g and found["sci_operational"] == numbers.g_per_million_tokens
    assert found["basis"] == data.basis and found["tool_version"] == "1.2.3" and found["signal_versions"] == []
    assert [site["kwh"] for site in found["sites"]] == pytest.approx(
        [used.kwh for used in totals_by(data.ledger, "site").values()]
    )
    assert found["baselines"][-1]["co2_g"] is None, "a figure that does not exist is null"
    assert "curtail_pipeline 1.2.3" in page and "2026-01-12 03:00" in page and "1 x cpu" in page


def test_each_chart_has_its_own_size_on_a_narrow_screen(page: str) -> None:
    """390 pixels less the page's margins are 344: what is wider would be shrunk, and its text with it."""
    drawn = re.findall(r'<div class="(wide|narrow)"><svg[^>]*?width="([\d.]+)"', page)
    assert [name for name, _ in drawn] == ["wide", "narrow"] * len(CHARTS)
    assert all(float(width) <= 344 for name, width in drawn if name == "narrow"), drawn
    assert all(600 <= float(width) <= 952 for name, width in drawn if name == "wide"), drawn
    sizes = {float(size) for size in re.findall(r'font-size="([\d.]+)px"', page)}
    assert min(sizes) >= 11


def test_ink_and_ground_follow_the_readers_scheme(page: str, files: dict[str, bytes]) -> None:
    assert dark_rules("svg ") in page and "prefers-color-scheme:dark" in page
    assert dark_rules() in files["power.svg"].decode(), "a file by itself too"
    rules = re.findall(r'\[(fill|stroke)="(#\w+)" i\]', dark_rules())
    ground = re.findall(r'<rect [^>]*?fill="(\w+|#\w+)"', page)
    assert {"white", "black"}.isdisjoint(ground), "what has no rule stays as it is"
    assert ("fill", "#FFFFFF") in rules


def test_numbers(data: ReportInput) -> None:
    """Three site-segments: 50 min at 2 kW and 10 min at 0.5 kW each; the signal is high for the last 10 minutes."""
    numbers = summary(data)
    each = 2 * 50 / 60 + 0.5 * 10 / 60
    assert numbers.ours.kwh == pytest.approx(3 * each)
    high = 2 * 2 * 10 / 60
    assert numbers.ours.co2_g == pytest.approx(40 * (3 * each - high) + 500 * high)
    assert numbers.below_threshold_share == pytest.approx(1 - high / (3 * each))
    assert numbers.ours.curtailed_share == 1.0, "windows include the exit delay"
    assert numbers.g_per_million_tokens == pytest.approx(numbers.ours.co2_g / 0.003)
    assert [row.region for row in data.baselines] == ["A", "R2", "DE"]
    first, _, unknown = (row.ours_of_baseline for row in data.baselines)
    assert first is not None and first > 0 and unknown is None


def test_synthetic_traces_and_gaps_are_shown() -> None:
    data = build(source="synthetic", hours=2)
    assert totals(data.ledger).unaccounted_kwh
    page = report_files(data)["index.html"].decode()
    assert "Synthetic traces." in page and data.synthetic
    assert page.count("synthetic signal") >= len(SITES), "in the chart as well, which is shown without the page"
    assert "kWh are not in the emissions" in page
    assert all(row.ours_of_baseline is None for row in data.baselines)


def test_a_run_that_has_only_begun(data: ReportInput) -> None:
    empty = replace(
        data,
        manifests=data.manifests[:1],
        intervals=data.intervals.clear(),
        ledger=data.ledger.clear(),
        baselines=[],
        losses=data.losses.clear(),
        heldout=data.heldout.clear(),
    )
    assert build_charts(empty) == {}
    assert "ckpt-000000" in build_report(empty, {}, {})


def test_a_long_trace_is_thinned() -> None:
    signal, end = build(hours=24 * 30).signals["A"], START + timedelta(days=30)
    steps = signal_steps(signal, START, end)
    assert MOST_POINTS / 2 < len(steps) <= MOST_POINTS + 1
    assert steps[0].start == START and steps[-1].end == end
    assert signal_steps(signal, at(61), at(171)) == [
        *(Step(max(at(m), at(61)), at(m + 5), 40.0) for m in range(60, 170, 5)),
        Step(at(170), at(171), 500.0),
    ]
    assert signal_steps(None, START, end) == []


def test_png(data: ReportInput) -> None:
    png = to_png(build_charts(data)["baselines"], scale=1)
    assert png.startswith(b"\x89PNG") and len(png) > 2000


def test_a_held_out_loss_that_is_no_number_leaves_the_report(data: ReportInput) -> None:
    """It is stored as it was measured, of a model that diverged."""
    held = data.heldout.with_columns(
        loss=pl.when(pl.int_range(pl.len()) == 1).then(float("nan")).otherwise(pl.col("loss"))
    )
    assert held["loss"].is_nan().sum() == 1
    found = report_files(replace(data, heldout=held))
    assert b"</html>" in found["index.html"]


def card_parts(text: str) -> tuple[dict[str, Any], str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def card(data: ReportInput, *, synthetic: bool = False, **more: Any) -> tuple[dict[str, Any], str]:
    made = {"name": "try", "lineage": data.manifests, "sites": SITES, "ledger": data.ledger, "policy": "paper"}
    return card_parts(model_card(CardInput(**{**made, "synthetic": synthetic, **more})))


def test_model_card(data: ReportInput) -> None:
    front, body = card(
        data, heldout_loss=7.25, below=(100.0, 0.346), baselines=data.baselines, kinds=["marginal_intensity"]
    )
    emissions = front["co2_eq_emissions"]
    assert emissions["emissions"] == pytest.approx(totals(data.ledger).co2_g, abs=1e-3), "grams, as the hub wants it"
    assert emissions["training_type"] == "pre-training"
    assert emissions["geographical_location"] == "A, R2"
    assert emissions["hardware_used"] == "A: 1 x cpu, 2 kW, PUE 1; B: 1 x cpu, 2 kW, PUE 1"
    assert "projected (virtual time, modelled power)" in emissions["source"]
    assert "step-held marginal intensity" in emissions["source"]
    assert "# try\n" in body and "`ckpt-000002`" in body and "policy `paper`" in body
    assert data.manifests[-1].sha256() in body and "7.2500 nat" in body and "| R2 |" in body
    assert "2 segments: 1 local, 1 federated" in body
    assert "100.0 % inside the curtailment windows of its rule and 34.6 % while" in body and " only " not in body
    assert "All energy and CO2 below: **projected (virtual time, modelled power)**." in body
    assert "| always on in | kWh | CO2 | this model is |" in body and "| DE |" not in body, "it has no CO2"


def test_a_field_of_the_card_that_is_not_known_is_not_there(data: ReportInput) -> None:
    front, body = card(data)
    assert not {"license", "language", "datasets"} & front.keys()
    assert "below" not in body.split("## Emissions")[0] and "always on" not in body
    front, body = card(data, datasets=["owner/name"], language=["en"], license="apache-2.0")
    assert front["datasets"] == ["owner/name"] and (front["language"], front["license"]) == ("en", "apache-2.0")
    assert "- data sets: owner/name\n- language: en\n- licence: apache-2.0\n" in body
    assert card(data, language=["en", "de"])[0]["language"] == ["en", "de"]
    unknown = data.ledger.with_columns(curtailed_kwh=pl.lit(None, pl.Float64))
    assert "Of its energy" not in card(data, ledger=unknown)[1]
    begun, _ = card(data, lineage=data.manifests[:1])
    assert "co2_eq_emissions" not in begun, "nothing was drawn"


@pytest.mark.parametrize("synthetic", [False, True])
@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("more", [{}, {"datasets": ["o/n"], "language": ["en"], "license": "mit"}])
def test_no_field_of_the_card_is_empty(data: ReportInput, synthetic: bool, begun: bool, more: dict[str, Any]) -> None:
    lineage = data.manifests[:1] if begun else data.manifests
    front, body = card(data, synthetic=synthetic, lineage=lineage, baselines=data.baselines, **more)
    values = [*front.values(), *front.get("co2_eq_emissions", {}).values()]
    assert all(value not in (None, "", [], {}) for value in values)
    assert "- training type: pre-training\n- policy: `paper`\n" in body and "None" not in body
    assert not re.search(r"^- .*: *$", body, flags=re.MULTILINE)
    assert ("- A in A: 1 x cpu, 2 kW, PUE 1\n" in body) == (not begun), "also where no emissions are declared"


def test_the_card_of_measured_power_says_so(data: ReportInput) -> None:
    measured = data.ledger.with_columns(clock=pl.lit("wall"), power=pl.lit("measured"))
    front, body = card(data, ledger=measured)
    assert "curtail_pipeline, measured power:" in front["co2_eq_emissions"]["source"] and "projected" not in body


def test_model_card_counts_its_lineage_only(data: ReportInput) -> None:
    first = totals(data.ledger.filter(pl.col("checkpoint") == "ckpt-000001")).co2_g
    front, _ = card(data, lineage=data.manifests[:2])
    assert front["co2_eq_emissions"]["emissions"] == pytest.approx(first, abs=1e-3)
    assert front["co2_eq_emissions"]["geographical_location"] == "A"


def test_model_card_of_a_synthetic_run_declares_no_emissions(data: ReportInput) -> None:
    front, body = card(data, synthetic=True)
    assert "co2_eq_emissions" not in front and "**synthetic**" in body


def test_formats() -> None:
    assert [mass(x) for x in (None, 0.0, 217.2, 1344.0)] == ["–", "0 g", "217 g", "1.34 kg"]
    assert [percent(x) for x in (None, float("inf"), 0.1212, 0.99999, 1.0)] == [
        "–",
        "–",
        "12.1 %",
        "> 99.9 %",
        "100.0 %",
    ]
    assert [short(x) for x in (0, 999, 1500, 12.38e9)] == ["0", "999", "1.5 k", "12.4 G"]
