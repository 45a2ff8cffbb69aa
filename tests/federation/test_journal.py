"""The journal of a segment's rounds, read again and again while it grows, and what a line of it tells."""

from pathlib import Path
from typing import Any

import pytest
from test_rounds import Bench, Fault

from curtail_pipeline.errors import MessageError
from curtail_pipeline.federation.merge_report import MergeReport
from curtail_pipeline.federation.plan import journal_key, parse_journal, read_journal
from curtail_pipeline.federation.progress import merged_round
from curtail_pipeline.storage.folder_store import FolderStore


def test_lines_that_were_read_are_not_parsed_again(tmp_path: Path) -> None:
    store, folder = FolderStore(tmp_path), "scratch/ckpt-000001/1"
    assert read_journal(store, folder) == read_journal(store, folder, 3) == []
    store.write_bytes(journal_key(folder), b"no line\n")
    assert read_journal(store, folder, 1) == []
    with pytest.raises(MessageError, match=r"^line 3 of it is not valid JSON"):
        parse_journal(b"one\ntwo\nthree\n", "it", 2)


def moved(
    folder: Path, rounds: list[dict[str, int]], faults: tuple[Fault, ...] = (), **changes: Any
) -> tuple[int, list[int], MergeReport]:
    """Bytes of a segment's last round, those that each site sent of its weights, and the merge."""
    bench = Bench(folder)
    bench.run(bench.plan(rounds, tuple(rounds[0]), **changes), faults)
    line = read_journal(bench.store, "scratch/ckpt-000001/1")[-1]
    return merged_round(line).bytes, [result.weights.bytes for result in line.results.values()], line.merge


CODED = {"exchange": {"upload": "int2", "download": "int8"}}
SHARED = {"shared": {"name": "fresh"}}
BOTH = {"CA": 1, "TX": 1}


def test_a_round_tells_the_bytes_that_travel(tmp_path: Path) -> None:
    told, sent, merge = moved(tmp_path / "weights", [BOTH])
    assert told == sum(sent) + 2 * merge.weights.bytes and merge.delta is None
    told, sent, merge = moved(tmp_path / "coded", [BOTH], **CODED)
    assert merge.delta is not None and merge.delta.bytes != merge.weights.bytes
    assert told == sum(sent) + 2 * merge.delta.bytes, "who began with the round's weights fetches how far they moved"
    told, sent, merge = moved(tmp_path / "shared", [BOTH], **SHARED)
    assert merge.inner is not None
    assert told == sum(sent) + 2 * merge.weights.bytes + 4 * merge.inner.bytes, "both ways"


def test_a_round_tells_no_bytes_of_what_is_there_already(tmp_path: Path) -> None:
    for name, changes in {"weights": {}, "coded": CODED, "shared": SHARED}.items():
        told, sent, merge = moved(tmp_path / name, [{"CA": 1}], **changes)
        assert told == sent[0] + (merge.inner.bytes if merge.inner else 0), "of a site's own work"
    told, sent, merge = moved(tmp_path / "lost", [BOTH], (Fault("TX", 0, "kill"),))
    assert told == sent[0] + merge.weights.bytes, "of a lost site's"
    told, sent, _ = moved(tmp_path / "refused", [BOTH] * 2, tuple(Fault(site, 1, "nan") for site in BOTH))
    assert told == sum(sent), "of the weights that the round began with"
    overlapped = SHARED | {"exchange": {"upload": "int8", "overlap": True}}
    told, sent, merge = moved(tmp_path / "overlapped", [BOTH], **overlapped)
    assert merge.inner is not None
    assert told == sum(sent) + 2 * merge.weights.bytes + 2 * merge.inner.bytes, (
        "of an inner state that stays a site's own"
    )
