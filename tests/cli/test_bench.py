"""`curtail bench NAME --option value`."""

import pytest

from curtail_pipeline.cli.bench import names, parse_options, run_benchmark
from curtail_pipeline.errors import SettingsError


def test_options_are_parameters_and_values_json_where_they_can_be() -> None:
    words = ["--vocab-size", "512", "--dtype", "bfloat16", "--compile", "--weeks=[1,2]", "--folder", "/data"]
    assert parse_options(words) == {
        "vocab_size": 512,
        "dtype": "bfloat16",
        "compile": True,
        "weeks": [1, 2],
        "folder": "/data",
    }


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["regions=100"], "write --regions 100"),
        (["100"], "'100' is no option"),
        (["--days", "1", "--days", "2"], "--days is given twice"),
    ],
)
def test_words_that_are_none(words: list[str], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        parse_options(words)


def test_the_batch_benchmark_reads_what_it_writes() -> None:
    found = run_benchmark("batches", ["--tokens", "5000000", "--sequence-length", "64", "--seconds", "0.05"])
    assert (found["tokens"], found["sequence_length"]) == (5_000_000, 64)
    assert isinstance(found["tokens_per_s"], int) and found["tokens_per_s"] > 0


def test_what_a_benchmark_does_not_take_is_named() -> None:
    assert {"windows", "windows-quality", "simulate", "tokenize", "batches", "training", "forecast-study"} <= set(
        names()
    )
    with pytest.raises(SettingsError, match="no benchmark 'window'; there are backfill, batches, "):
        run_benchmark("window", [])
    with pytest.raises(SettingsError, match=r"takes --regions, --days, --folder, not --sites"):
        run_benchmark("windows", ["--sites", "3"])
