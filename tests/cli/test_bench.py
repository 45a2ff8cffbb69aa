"""`curtail bench NAME --option value`."""

import importlib
import inspect
from collections.abc import Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter

from curtail_pipeline.benchmarks import bench_overheads
from curtail_pipeline.cli.bench import names, parse_options, run_benchmark, value_of
from curtail_pipeline.errors import SettingsError


def test_options_are_parameters_and_values_json_where_they_can_be() -> None:
    words = ["--vocab-size", "512", "--dtype", "bfloat16", "--compile", "--weeks=[1,2]", "--folder", "2026", "--only="]
    kinds: dict[str, Any] = {
        "vocab_size": int, "dtype": str, "compile": bool, "weeks": Sequence[int], "folder": str | None, "only": str,
    }  # fmt: skip
    assert {name: value_of(name, text, kinds[name]) for name, text in parse_options(words).items()} == {
        "vocab_size": 512,
        "dtype": "bfloat16",
        "compile": True,
        "weeks": [1, 2],
        "folder": "2026",
        "only": "",
    }


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--steps", "many"], "--steps many will not do: Input should be a valid integer"),
        (["--steps"], "--steps without a value will not do"),
        (["--steps", "2.5"], "--steps 2.5 will not do"),
        (["--preset"], "--preset without a value will not do: Input should be a valid string"),
        (["--snapshots", "7"], "--snapshots 7 will not do: Input should be a valid boolean"),
        (["--parallel", "fdsp"], "--parallel fdsp will not do: Input should be 'auto', 'ddp' or 'fsdp'"),
    ],
)
def test_a_value_that_a_benchmark_does_not_take_is_refused(words: list[str], text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        run_benchmark("train", words)


def test_every_benchmarks_options_have_types_that_their_defaults_are_of() -> None:
    for name in names():
        run = importlib.import_module(f"curtail_pipeline.benchmarks.bench_{name.replace('-', '_')}").run
        for option, parameter in inspect.signature(run, eval_str=True).parameters.items():
            default = parameter.default
            assert TypeAdapter(parameter.annotation).validate_python(default) == default, f"{name} --{option}"


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


def test_a_rounds_seconds_are_split_at_the_last_members_training() -> None:
    """Two sites train for 4 and 5 s, ending 8 and 10 s after the round's start; it lasts 20 s, 3 of them the merge."""
    results = {"A": SimpleNamespace(seconds=4.0), "B": SimpleNamespace(seconds=5.0)}
    start = datetime.fromtimestamp(100, UTC)
    line: Any = SimpleNamespace(
        done=SimpleNamespace(start=start), results=results, merge=SimpleNamespace(seconds=3.0), wall_s=20.0
    )
    times = bench_overheads._Times()
    bench_overheads._add(times, line, {"A": 108.0, "B": 110.0}, submitted=90.0)
    assert (times.load, times.tail, times.merge, times.first_step) == ([5.0], [7.0], [3.0], 15.0)
    assert times.load[0] + 5.0 + times.tail[0] + times.merge[0] == line.wall_s
    bench_overheads._add(times, line, {"A": 108.0, "B": None}, submitted=90.0)
    assert len(times.load) == 1, "a round whose end of training was not seen cannot be split"
