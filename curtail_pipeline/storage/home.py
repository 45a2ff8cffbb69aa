"""The home of an experiment: one folder per experiment (settings and trace content), with its store and its instance.

    .curtail/<name>/    store/  dagster/  federation/  experiment.yaml

The store may be a bucket instead (`--out s3://bucket/prefix`, or `CURTAIL_STORE`); `store.uri` then says which.

`store/experiment_identity.json` is the record against which a later run is checked. `store/experiment.json` and
`experiment.yaml` are the experiment itself, resolved, for other processes (trainers, code location); both are read with
`parse_experiment`.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, Never

import yaml
from filelock import FileLock, Timeout
from pydantic import JsonValue

from curtail_pipeline.errors import MessageError, SettingsError, StoreError
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.settings.trace_settings import TracesSettings
from curtail_pipeline.storage.folder_store import FolderStore, is_uri
from curtail_pipeline.storage.records import Json, Message, Sha256
from curtail_pipeline.storage.store import Store, canonical_json
from curtail_pipeline.storage.stores import Connect, open_store

STORE_ENV = "CURTAIL_STORE"
URI_FILE = "store.uri"
EXPERIMENT_KEY = "experiment.json"
RECORD_KEY = "experiment_identity.json"
FORMAT: Final = 2
"""Of a home: of its record and of all that lies in its store."""
_DONE_BEFORE: Final[Mapping[str, Mapping[str, Json]]] = {
    "rounds": {"inner_state": "own", "member_lr_power": 0.0},
    "corpus": {"fresh_first": False},
}
"""What was done before a setting existed, where its default is something else: a home made then is not gone on with
otherwise without a word."""
_ABSENT = "(absent)"
_SHOWN = 8
"""Differences listed in an error; the rest is counted."""


def homes_root() -> Path:
    """The folder that holds the homes: `CURTAIL_HOME`, or `.curtail` in the working directory.

    Raises:
        SettingsError: it is no folder.
    """
    return _folder(os.environ.get("CURTAIL_HOME") or ".curtail", "CURTAIL_HOME")


def _folder(location: Path | str, name: str) -> Path:
    if is_uri(location):
        raise SettingsError(
            f"{name} is {str(location)!r}, which is no folder; give a folder, and the store with --out or {STORE_ENV}"
        )
    return Path(location).resolve()


class HomeRecord(Message):
    """What a home is checked against: the experiment's identity and its hash."""

    format: Literal[2] = FORMAT
    name: str
    sha256: Sha256
    """Of the identity; a checkpoint's manifest names it as `experiment_sha256`."""
    trace_sha256: str
    """Of the trace's content; empty for a live source."""
    identity: dict[str, JsonValue]
    """What results depend on, the trace by content and not by path."""


def experiment_record(experiment: Experiment, trace_fingerprint: str) -> HomeRecord:
    identity = _identity(experiment, trace_fingerprint)
    return HomeRecord(
        name=experiment.name,
        sha256=hashlib.sha256(canonical_json(identity)).hexdigest(),
        trace_sha256=trace_fingerprint,
        identity=identity,
    )


def _as_done_before(content: Json) -> Json:
    if not isinstance(content, Mapping):
        return content
    found = dict(content)
    for name, before in _DONE_BEFORE.items():
        section = content.get(name)
        if isinstance(section, Mapping):
            found[name] = {**before, **section}
    return found


def _identity(experiment: Experiment, trace_fingerprint: str) -> dict[str, JsonValue]:
    identity = experiment.identity()
    traces = identity["traces"]
    for source in (traces, *traces.get("sources", ())):
        source.pop("path", None)
    traces["content_sha256"] = trace_fingerprint
    return identity


class Home:
    """The folder of one experiment.

    Args:
        root: the folder.
        store: URI of the store, where it is not in the folder.
        connect: makes the client of a bucket; with the usual AWS settings when not given.
    """

    def __init__(self, root: Path | str, store: str | None = None, connect: Connect | None = None) -> None:
        self.root, self._store, self._connect = _folder(root, "the home"), store, connect
        self._opened: Store | None = None

    @classmethod
    def of(cls, experiment: Experiment, out: Path | str | None = None, connect: Connect | None = None) -> "Home":
        """`out` when it is a folder, else the experiment's folder under `homes_root()`; a URI says where its store is.

        Raises:
            StoreError: a URI of another kind than `s3://bucket/prefix`.
            SettingsError: a store in the environment that is no URI, or an empty `out`.
        """
        if out == "":
            raise SettingsError("--out is empty; give a folder or s3://bucket/prefix, or leave it out")
        place = out if out is not None else os.environ.get(STORE_ENV) or None
        if place is None:
            return cls(homes_root() / experiment.name)
        if is_uri(place):
            return cls(homes_root() / experiment.name, open_store(str(place)).uri, connect)
        if out is None:
            raise SettingsError(f"{STORE_ENV} is {place!r}, which is no s3://bucket/prefix; give a folder with --out")
        return cls(place, connect=connect)

    @classmethod
    def of_copy(cls, file: Path, connect: Connect | None = None) -> "Home | None":
        """The home that has this file as the copy of its experiment; None for anybody's own file, whatever its name."""
        home = cls(file.parent, connect=connect)
        return home if file.name == home.experiment_file.name and home._remembered() is not None else None

    @property
    def store(self) -> str:
        """Where the store is: a folder, or `s3://bucket/prefix`.

        Raises:
            SettingsError: another one than the home was made with.
            StoreError: the home is no folder, or cannot be read.
        """
        known = self._remembered()
        if self._store is not None and known is not None and known != self._store:
            raise SettingsError(
                f"the home {self.root} has its store at {known}, not at {self._store}; give that one with --out, or "
                "another folder for homes with CURTAIL_HOME"
            )
        return self._store or known or str(self.root / "store")

    def _remembered(self) -> str | None:
        try:
            return (self.root / URI_FILE).read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return str(self.root / "store") if (self.root / "store" / RECORD_KEY).exists() else None
        except OSError as error:
            raise self._unwritable(error) from error

    def open_store(self) -> Store:
        """The store, opened once: a client of a bucket takes a tenth of a second to make."""
        place = self.store
        if self._opened is None or self._opened.uri != place:
            self._opened = open_store(place, self._connect)
        return self._opened

    @property
    def dagster(self) -> Path:
        return self.root / "dagster"

    @property
    def federation(self) -> Path:
        return self.root / "federation"

    @property
    def experiment_file(self) -> Path:
        return self.root / "experiment.yaml"

    def exists(self) -> bool:
        return self.open_store().exists(RECORD_KEY)

    def record(self) -> HomeRecord:
        """What the home was made with: `name`, `sha256`, `trace_sha256` and `identity`.

        Raises:
            StoreError: there is none, or it is not readable.
        """
        content = self.open_store().read_json(RECORD_KEY)
        found = content.get("format") if isinstance(content, Mapping) else None
        if isinstance(found, int) and found != FORMAT:
            self._refuse_other("an earlier" if found < FORMAT else "a later", f"its format is {found}, not {FORMAT}")
        try:
            return HomeRecord.read(content, f"{self.store}/{RECORD_KEY}")
        except MessageError as error:
            raise StoreError(f"{error}; or restore it from a copy, or use another folder with --out") from error

    def _refuse_other(self, version: str, sign: str) -> Never:
        raise StoreError(
            f"the home {self.root} was made by {version} version of curtail_pipeline ({sign}), whose files this one "
            "does not read; use another folder with --out, or the version that made it"
        )

    def experiment(self) -> Experiment:
        """The experiment this home was last opened with.

        Raises:
            StoreError: the home was never opened.
            SettingsError: its settings no longer validate.
        """
        content, source = self.open_store().read_json(EXPERIMENT_KEY), f"{self.store}/{EXPERIMENT_KEY}"
        return parse_experiment(_as_done_before(content), source)

    def open(self, experiment: Experiment, trace_fingerprint: str) -> HomeRecord:
        """Create the home, or check that it is this experiment's; returns the record.

        Settings outside the identity (the clock's end, replay speed, federation timing, the path of a trace file) may
        change from one opening to the next.

        Raises:
            SettingsError: the home is another experiment's; lists each differing key with its old and its new value.
                Or the folder is no home and has a file that a home's would replace.
            StoreError: the folder cannot be written.
        """
        record = experiment_record(experiment, trace_fingerprint)
        self._spare_foreign_file()
        try:
            store = self.open_store()
            for folder in (self.dagster, self.federation):
                folder.mkdir(parents=True, exist_ok=True)
            if isinstance(store, FolderStore):
                store.root.mkdir(exist_ok=True)
            with FileLock(self.root / ".open.lock"):
                if self.exists():
                    record = self._check(record)
                elif any(store.exists(f"checkpoints/{key}/manifest.json") for key in store.list("checkpoints")):
                    self._refuse_other("an earlier", f"it has checkpoints and no {RECORD_KEY}")
                settings = _resolved(experiment)
                text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
                _write_if_changed(store, RECORD_KEY, canonical_json(record.model_dump(mode="json")))
                _write_if_changed(store, EXPERIMENT_KEY, canonical_json(settings))
                if not isinstance(store, FolderStore):
                    _write_if_changed(FolderStore(self.root), URI_FILE, f"{store.uri}\n".encode())
                _write_if_changed(FolderStore(self.root), self.experiment_file.name, text.encode())
        except OSError as error:
            raise self._unwritable(error) from error
        return record

    def _spare_foreign_file(self) -> None:
        if self.experiment_file.exists() and self._remembered() is None and not self.dagster.exists():
            raise SettingsError(
                f"the folder {self.root} is no home and has a file {self.experiment_file.name}, which the home's own "
                "copy of the experiment would replace; give another folder with --out, or rename that file"
            )

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"the experiment home {self.root} cannot be written: {error.strerror or error}; make it writable, "
            "free space, or give another folder with --out or CURTAIL_HOME"
        )

    def _check(self, new: HomeRecord) -> HomeRecord:
        """The record to keep: the first one, whose hash checkpoints name, until sites are added."""
        old = self.record()
        if old.sha256 == new.sha256:
            return old
        try:
            # Settings that did not exist when the home was made have their defaults on both sides.
            identity = _identity(self.experiment(), old.trace_sha256)
        except SettingsError:
            identity = old.identity
        found = differences(identity, new.identity)
        changes = [change for change in found if not _is_added_site(change)]
        if not changes:
            return new if found else old
        shown = "; ".join(f"{key}: {before} -> {after}" for key, before, after in changes[:_SHOWN])
        more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        if any(key == "traces.content_sha256" for key, *_ in changes):
            more += " (a trace file that somebody goes on writing is provider: live_file)"
        raise SettingsError(
            f"the home {self.root} holds another experiment; changed: {shown}{more}. "
            "Nothing was touched: give another folder with --out, or restore the old values to go on with this one"
        )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """The exclusive right to run in this home.

        Raises:
            StoreError: another process runs here; names its process id.
        """
        holder = self.root / "run.pid"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            guard = FileLock(self.root / ".run.lock", timeout=0)
            guard.acquire()
        except Timeout:
            pid = holder.read_text().strip() if holder.exists() else "unknown"
            raise StoreError(
                f"another `curtail run` (pid {pid}) uses this home, {self.root}; wait for it or stop it, "
                "or give another folder with --out"
            ) from None
        except OSError as error:
            raise StoreError(f"the home {self.root} cannot be locked: {error.strerror or error}") from error
        try:
            holder.write_text(str(os.getpid()))
            yield
        finally:
            holder.unlink(missing_ok=True)
            guard.release()


def _resolved(experiment: Experiment) -> dict[str, JsonValue]:
    """All settings, defaults included; trace files by absolute paths, for processes that work in other folders."""
    settings = experiment.model_dump(mode="json")
    settings["traces"] = resolved_traces(experiment.traces)
    return settings


def resolved_traces(traces: TracesSettings) -> dict[str, JsonValue]:
    """The settings of the traces, with every path and glob pattern absolute.

    Keys that nobody gave stay away: a file whose columns say otherwise than a default is refused by whoever reads it.
    """
    settings = traces.model_dump(mode="json", exclude_unset=True) | {"provider": traces.provider}
    for source in (settings, *settings.get("sources", ())):
        path = source.get("path")
        if path is not None:
            source["path"] = _absolute(path) if isinstance(path, str) else [_absolute(entry) for entry in path]
    return settings


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _write_if_changed(store: Store, key: str, data: bytes) -> None:
    if not store.exists(key) or store.read_bytes(key) != data:
        store.write_bytes(key, data)


def differences(old: Json, new: Json, prefix: str = "") -> list[tuple[str, str, str]]:
    """`(dotted key, old value, new value)` for every leaf that differs; list items with a name go by it."""
    before, after = _by_name(old), _by_name(new)
    if before is not None and after is not None:
        if [*before] != [*after] and {*before} == {*after}:
            return [(prefix, f"order {', '.join(before)}", f"order {', '.join(after)}")]
        old, new = before, after
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in dict.fromkeys([*old, *new]):
            name = f"{prefix}.{key}" if prefix else str(key)
            found += differences(old.get(key, _ABSENT), new.get(key, _ABSENT), name)
        return found
    return [] if old == new else [(prefix, _short(old), _short(new))]


def _is_added_site(change: tuple[str, str, str]) -> bool:
    """It trains on text moved to it, and what is committed does not depend on it."""
    key, before, _ = change
    return key.startswith("sites.") and key.count(".") == 1 and before == _ABSENT


def _by_name(items: Json) -> dict[str, Json] | None:
    """A list of things with names, by name; None for anything else."""
    if not isinstance(items, list) or not items:
        return None
    named: dict[str, Json] = {str(item["name"]): item for item in items if isinstance(item, Mapping) and "name" in item}
    return named if len(named) == len(items) else None


def _short(value: Json) -> str:
    text = _ABSENT if value == _ABSENT else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
