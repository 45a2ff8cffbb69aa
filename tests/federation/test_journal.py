"""The journal of a segment's rounds, read again and again while it grows."""

from pathlib import Path

import pytest

from curtail_pipeline.errors import MessageError
from curtail_pipeline.federation.plan import journal_key, parse_journal, read_journal
from curtail_pipeline.storage.folder_store import FolderStore


def test_lines_that_were_read_are_not_parsed_again(tmp_path: Path) -> None:
    store, folder = FolderStore(tmp_path), "scratch/ckpt-000001/1"
    assert read_journal(store, folder) == read_journal(store, folder, 3) == []
    store.write_bytes(journal_key(folder), b"no line\n")
    assert read_journal(store, folder, 1) == []
    with pytest.raises(MessageError, match=r"^line 3 of it is not valid JSON"):
        parse_journal(b"one\ntwo\nthree\n", "it", 2)
