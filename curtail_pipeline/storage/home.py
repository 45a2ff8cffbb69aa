"""The home of an experiment: one folder per experiment (settings and trace content), with its store and its instance.

    .curtail/<name>/    store/  dagster/  federation/  experiment.yaml

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
from curtail_pipeline.storage.records import Json, Message, Sha256
from curtail_pipeline.storage.store import Store, canonical_json

EXPERIMENT_KEY = "experiment.json"
RECORD_KEY = "experiment_identity.json"
FORMAT: Final = 2
"""Of a home: of its record and of all that lies in its store."""
_ABSENT = "(absent)"
_SHOWN = 8
"""Differences listed in an error; the rest is counted."""


def homes_root() -> Path:
    """The folder that holds the homes: `CURTAIL_HOME`, or `.curtail` in the working directory."""
    return Path(os.environ.get("CURTAIL_HOME") or ".curtail").resolve()


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


def _identity(experiment: Experiment, trace_fingerprint: str) -> dict[str, JsonValue]:
    identity = experiment.identity()
    traces = identity["traces"]
    for source in (traces, *traces.get("sources", ())):
        source.pop("path", None)
    traces["content_sha256"] = trace_fingerprint
    return identity


class Home:
    """The folder of one experiment."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).resolve()

    @classmethod
    def of(cls, experiment: Experiment, out: Path | str | None = None) -> "Home":
        """`out` when given, else the experiment's folder under `homes_root()`."""
        return cls(out if out is not None else homes_root() / experiment.name)

    @property
    def store(self) -> Path:
        return self.root / "store"

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
        return Store(self.store).exists(RECORD_KEY)

    def record(self) -> HomeRecord:
        """What the home was made with: `name`, `sha256`, `trace_sha256` and `identity`.

        Raises:
            StoreError: there is none, or it is not readable.
        """
        content = Store(self.store).read_json(RECORD_KEY)
        found = content.get("format") if isinstance(content, Mapping) else None
        if isinstance(found, int) and found != FORMAT:
            self._refuse_other("an earlier" if found < FORMAT else "a later", f"its format is {found}, not {FORMAT}")
        try:
            return HomeRecord.read(content, f"{self.store / RECORD_KEY}")
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
        return parse_experiment(Store(self.store).read_json(EXPERIMENT_KEY), str(self.store / EXPERIMENT_KEY))

    def open(self, experiment: Experiment, trace_fingerprint: str) -> HomeRecord:
        """Create the home, or check that it is this experiment's; returns the record.

        Settings outside the identity (the clock's end, replay speed, federation timing, the path of a trace file) may
        change from one opening to the next.

        Raises:
            SettingsError: the home is another experiment's; lists each differing key with its old and its new value.
            StoreError: the folder cannot be written.
        """
        record = experiment_record(experiment, trace_fingerprint)
        try:
            for folder in (self.store, self.dagster, self.federation):
                folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".open.lock"):
                if self.exists():
                    # The first record's hash stays: checkpoints name it, and a new version may have added settings.
                    old = self._check(record)
                    record = record.model_copy(update={"sha256": old.sha256, "identity": old.identity})
                elif any(self.store.glob("checkpoints/*/manifest.json")):
                    self._refuse_other("an earlier", f"it has checkpoints and no {RECORD_KEY}")
                settings = _resolved(experiment)
                text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
                _write_if_changed(self.store, RECORD_KEY, canonical_json(record.model_dump(mode="json")))
                _write_if_changed(self.store, EXPERIMENT_KEY, canonical_json(settings))
                _write_if_changed(self.root, self.experiment_file.name, text.encode())
        except OSError as error:
            raise StoreError(
                f"the experiment home {self.root} cannot be written: {error.strerror or error}; make it writable, "
                "free space, or give another folder with --out or CURTAIL_HOME"
            ) from error
        return record

    def _check(self, new: HomeRecord) -> HomeRecord:
        old = self.record()
        if old.sha256 == new.sha256:
            return old
        try:
            # Settings that did not exist when the home was made have their defaults on both sides.
            identity = _identity(self.experiment(), old.trace_sha256)
        except SettingsError:
            identity = old.identity
        changes = differences(identity, new.identity)
        if not changes:
            return old
        shown = "; ".join(f"{key}: {before} -> {after}" for key, before, after in changes[:_SHOWN])
        more = f"; and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
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
    """The settings of the traces, with every path and glob pattern absolute."""
    settings = traces.model_dump(mode="json")
    for source in (settings, *settings.get("sources", ())):
        path = source.get("path")
        if path is not None:
            source["path"] = _absolute(path) if isinstance(path, str) else [_absolute(entry) for entry in path]
    return settings


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().resolve())


def _write_if_changed(root: Path, key: str, data: bytes) -> None:
    store = Store(root)
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


def _by_name(items: Json) -> dict[str, Json] | None:
    """A list of things with names, by name; None for anything else."""
    if not isinstance(items, list) or not items:
        return None
    named: dict[str, Json] = {str(item["name"]): item for item in items if isinstance(item, Mapping) and "name" in item}
    return named if len(named) == len(items) else None


def _short(value: Json) -> str:
    text = _ABSENT if value == _ABSENT else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
