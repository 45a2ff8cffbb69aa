"""A home of ten thousand checkpoints and three years of ten regions: what a sensor's tick and a list take.

The baseline is the walk over the folders that reads every manifest it passes, as `Checkpoints` did before it had an
index: from the newest to the first valid one for a tick, all of them for a list.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TypeVar

import polars as pl

from curtail_pipeline.emissions.grams import LEDGER_SCHEMA
from curtail_pipeline.errors import StoreError
from curtail_pipeline.settings.experiment import parse_experiment
from curtail_pipeline.stages.checkpoint_rows import checkpoint_rows
from curtail_pipeline.stages.derive_windows import derive_day, save_derived
from curtail_pipeline.stages.evaluate import evaluation_key
from curtail_pipeline.stages.ingest import ingest_day, save_ingested
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.tick import tick
from curtail_pipeline.storage.checkpoints import WEIGHTS_FILE
from curtail_pipeline.storage.clock import ReplayClock
from curtail_pipeline.storage.file_index import SETTLED_NS
from curtail_pipeline.storage.manifest import (
    FRESH,
    InnerStates,
    Manifest,
    SiteResult,
    StoredFile,
    make_manifest,
    parse_manifest,
)
from curtail_pipeline.storage.store import Store, file_sha256
from curtail_pipeline.storage.tables import ledger_key, trace_key, windows_key, windows_state_key, write_table
from curtail_pipeline.times import days_between
from curtail_pipeline.training.heldout_loss import Evaluation

BEGIN = datetime(2023, 1, 1, tzinfo=UTC)
SEGMENT = timedelta(minutes=30)
STILL = 1e-9
"""Replay speed of a clock that stands still."""
KEPT = 16
"""Checkpoints that stay whole when the newest are damaged."""


def run(checkpoints: int = 10_000, years: int = 3, regions: int = 10, repeats: int = 5) -> Mapping[str, object]:
    """Build the home in a temporary folder and time it; seconds, the median of `repeats`.

    `*_first_s` is the first call of a process, its opening of the home included, whose home has no index yet, or whose
    index has not seen the damage.
    """
    with tempfile.TemporaryDirectory(prefix="bench-size-") as folder:
        path = Path(folder)
        project = _home(path, checkpoints, years, regions)
        time.sleep(SETTLED_NS / 1e9 + 0.1)  # a file that has just changed is never taken from the index
        walk_list_s, _ = _timed(lambda: _walk(project.store), 1)
        list_first_s, rows = _timed(lambda: checkpoint_rows(_opened(project)), 1)
        assert len(rows) == checkpoints
        list_s, _ = _timed(lambda: checkpoint_rows(_opened(project)), repeats)
        tick_first_s, _ = _timed(lambda: _tick(_opened(project)), 1)
        tick_s, _ = _timed(lambda: _tick(project), repeats)
        damaged = max(0, checkpoints - KEPT)
        for number in range(checkpoints - damaged, checkpoints):
            _damage(project.store.here(f"checkpoints/ckpt-{number:06d}/manifest.json"))
        time.sleep(SETTLED_NS / 1e9 + 0.1)
        walk_damaged_s, last = _timed(lambda: next(_newest_first(project.store)), 1)
        tick_damaged_first_s, _ = _timed(lambda: _tick(_opened(project)), 1)
        tick_damaged_s, _ = _timed(lambda: _tick(project), repeats)
        assert project.checkpoints.last() == last
        return {
            "checkpoints": checkpoints,
            "days": len(project.days),
            "regions": regions,
            "tick_s": tick_s,
            "tick_first_s": tick_first_s,
            "list_s": list_s,
            "list_first_s": list_first_s,
            "damaged": damaged,
            "tick_damaged_s": tick_damaged_s,
            "tick_damaged_first_s": tick_damaged_first_s,
            "baseline": "walk over the folders, reading every manifest it passes",
            "walk_list_s": walk_list_s,
            "walk_damaged_last_s": walk_damaged_s,
        }


T = TypeVar("T")


def _timed(what: Callable[[], T], repeats: int) -> tuple[float, T]:
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        found = what()
        taken.append(time.perf_counter() - begin)
    return round(statistics.median(taken), 4), found


def _opened(project: Project) -> Project:
    """As another process opens it."""
    return Project.open(project.experiment, "replay", project.home.root)


def _tick(project: Project) -> None:
    """What the membership sensor does at an interval, but for its questions to Dagster."""
    last = project.checkpoints.last()
    assert last is not None
    parent = project.checkpoints.manifest(last)
    tick(project, active=None, setback=None, wall=datetime.now(UTC), parent=parent)


def _newest_first(store: Store) -> Iterator[str]:
    return (key for key in sorted(store.list("checkpoints"), reverse=True) if _valid(store, key))


def _walk(store: Store) -> list[str]:
    return list(_newest_first(store))


def _valid(store: Store, key: str) -> bool:
    try:
        parse_manifest(store.here(f"checkpoints/{key}/manifest.json").read_bytes(), key)
    except (StoreError, OSError):
        return False
    return True


def _damage(path: Path) -> None:
    """Cut a manifest short, as a full disk would."""
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size // 2)


def _home(folder: Path, checkpoints: int, years: int, regions: int) -> Project:
    names = [f"REGION_{number}" for number in range(regions)]
    end = BEGIN + timedelta(days=365 * years)
    stamps = pl.datetime_range(BEGIN, end, "5m", closed="left", eager=True, time_zone="UTC").alias("time")
    index = pl.int_range(len(stamps), eager=True)
    signals = [((index * (7 + n) // 24) % 600).cast(pl.Float64).alias(name) for n, name in enumerate(names)]
    pl.DataFrame([stamps, *signals]).write_parquet(folder / "trace.parquet")
    site = {"training_kw": 2.0, "idle_kw": 0.5, "steps_per_s": 0.01}
    experiment = {
        "name": "size",
        "traces": {"provider": "file", "path": str(folder / "trace.parquet")},
        "sites": [{"name": name, "region": name, **site} for name in names[:3]],
        "policy": {"name": "paper"},
        "job": {"steps": 10**9},
        "training": {"preset": "tiny", "sequence_length": 256, "total_batch_tokens": 4096},
    }
    project = Project.open(parse_experiment(experiment, "the benchmark"), "replay", folder / "home")
    last = BEGIN + SEGMENT * (checkpoints - 1)
    _tables(project, days_between(last - timedelta(days=3), last + timedelta(minutes=1)))
    _checkpoints(project, checkpoints)
    ReplayClock(project.store, last, STILL).anchor(last, STILL)
    return project


def _tables(project: Project, days: list[date]) -> None:
    """Traces and windows of every day; those that no tick reads are links to the first day's."""
    store, first = project.store, project.days[0]
    for region in project.experiment.regions:
        save_ingested(project, ingest_day(project, region, first))
    save_derived(project, derive_day(project, first))
    for day in project.days[1:]:
        for region in project.experiment.regions:
            store.put_file(store.here(trace_key(str(first), region)), trace_key(str(day), region))
        for key_of in (windows_key, windows_state_key):
            store.put_file(store.here(key_of(str(first))), key_of(str(day)))
    for day in days:
        for region in project.experiment.regions:
            save_ingested(project, ingest_day(project, region, day))
        save_derived(project, derive_day(project, day))


def _checkpoints(project: Project, count: int) -> None:
    """Manifests of their own over one small file of weights, each with its evaluation and its ledger."""
    store, site = project.store, project.experiment.sites[0].name
    weights = store.here("weights")
    store.write_bytes("weights", b"weights")
    stored = StoredFile(sha256=file_sha256(weights), bytes=weights.stat().st_size)
    store.write_record("evaluation", Evaluation(loss=3.0, perplexity=20.0, bits_per_byte=1.0, tokens=1000))
    piece = {"checkpoint": "ckpt-000000", "site": site, "kwh": 1.0, "co2_g": 10.0}
    write_table(store, "ledger", pl.DataFrame([{**dict.fromkeys(LEDGER_SCHEMA), **piece}], schema=LEDGER_SCHEMA))
    state = InnerStates(begin=FRESH, end=FRESH)
    parent: Manifest | None = None
    for number in range(count):
        key, steps = f"ckpt-{number:06d}", 1 if number else 0
        done = SiteResult(steps=steps, tokens=4096, consumed=[(1, number - 1, number)], inner_state=state)
        manifest = make_manifest(
            {
                "key": key,
                "parent": parent.key if parent else None,
                "parent_manifest_sha256": parent.sha256() if parent else None,
                "mode": "local" if parent else "init",
                "members": [site] if parent else [],
                "stop_reason": "length cap" if parent else "initialised",
                "generation": number,
                "attempt": 1,
                "experiment_sha256": project.home.record().sha256,
                "seed": 0,
                "start": BEGIN + SEGMENT * max(0, number - 1),
                "end": BEGIN + SEGMENT * number,
                "steps": {"begin": max(0, number - 1), "end": number},
                "tokens": {"segment": 4096 * steps, "total": 4096 * number},
                "rounds": steps,
                "ledger": {site: {"epoch": 1, "consumed": [(1, 0, number)]}} if parent else {},
                "sites": {site: done} if parent else {},
                "intervals": [],
                "files": {WEIGHTS_FILE: stored},
                "versions": {},
            }
        )
        folder = store.here(f"checkpoints/{key}")
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_bytes(manifest.to_bytes())
        (folder / WEIGHTS_FILE).hardlink_to(weights)
        store.put_file(store.here("evaluation"), evaluation_key(key))
        store.put_file(store.here("ledger"), ledger_key(key))
        parent = manifest
