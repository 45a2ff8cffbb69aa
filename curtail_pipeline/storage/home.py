"""The home of an experiment: one folder per experiment (settings and trace content), with its store and its instance.

    .curtail/<name>/    store/  dagster/  federation/  experiment.yaml

`store/experiment_identity.json` is the record against which a later run is checked. `store/experiment.json` and
`experiment.yaml` are the experiment itself, resolved, for other processes (trainers, code location); both are read with
`parse_experiment`.
"""

import copy
import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from curtail_pipeline.errors import SettingsError, StoreError
from curtail_pipeline.settings.experiment import Experiment, parse_experiment
from curtail_pipeline.storage.store import Store, canonical_json

EXPERIMENT_KEY = "experiment.json"
RECORD_KEY = "experiment_identity.json"
_ABSENT = "(absent)"
_SHOWN = 8
"""Differences listed in an error; the rest is counted."""


def homes_root() -> Path:
    """The folder that holds the homes: `CURTAIL_HOME`, or `.curtail` in the working directory."""
    return Path(os.environ.get("CURTAIL_HOME") or ".curtail").resolve()


def experiment_record(experiment: Experiment, trace_fingerprint: str) -> dict[str, Any]:
    """What a home is checked against: the identity (the trace by content, not by path) and its hash."""
    identity = _identity(experiment, trace_fingerprint)
    return {
        "format": 1,
        "name": experiment.name,
        "sha256": hashlib.sha256(canonical_json(identity)).hexdigest(),
        "trace_sha256": trace_fingerprint,
        "identity": identity,
    }


def experiment_sha256(experiment: Experiment, trace_fingerprint: str) -> str:
    """The hash that a checkpoint's manifest names as `experiment_sha256`."""
    return str(experiment_record(experiment, trace_fingerprint)["sha256"])


def _identity(experiment: Experiment, trace_fingerprint: str) -> dict[str, Any]:
    identity = copy.deepcopy(experiment.identity())
    identity["traces"].pop("path", None)
    identity["traces"]["content_sha256"] = trace_fingerprint
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

    def record(self) -> dict[str, Any]:
        """What the home was made with: `name`, `sha256`, `trace_sha256` and `identity`.

        Raises:
            StoreError: there is none, or it is not readable.
        """
        record = Store(self.store).read_json(RECORD_KEY)
        if not isinstance(record, dict) or not {"sha256", "identity", "trace_sha256"} <= record.keys():
            raise StoreError(
                f"{self.store / RECORD_KEY} is not the record of an experiment; restore it from a copy, "
                "or use another folder with --out"
            )
        return record

    def experiment(self) -> Experiment:
        """The experiment this home was last opened with.

        Raises:
            StoreError: the home was never opened.
            SettingsError: its settings no longer validate.
        """
        return parse_experiment(Store(self.store).read_json(EXPERIMENT_KEY), str(self.store / EXPERIMENT_KEY))

    def open(self, experiment: Experiment, trace_fingerprint: str) -> dict[str, Any]:
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
                    record.update(sha256=old["sha256"], identity=old["identity"])
                settings = _resolved(experiment)
                text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
                _write_if_changed(self.store, RECORD_KEY, canonical_json(record))
                _write_if_changed(self.store, EXPERIMENT_KEY, canonical_json(settings))
                _write_if_changed(self.root, self.experiment_file.name, text.encode())
        except OSError as error:
            raise StoreError(
                f"the experiment home {self.root} cannot be written: {error.strerror or error}; make it writable, "
                "free space, or give another folder with --out or CURTAIL_HOME"
            ) from error
        return record

    def _check(self, new: Mapping[str, Any]) -> dict[str, Any]:
        old = self.record()
        if old["sha256"] == new["sha256"]:
            return old
        try:
            # Settings that did not exist when the home was made have their defaults on both sides.
            identity = _identity(self.experiment(), old["trace_sha256"])
        except SettingsError:
            identity = old["identity"]
        changes = differences(identity, new["identity"])
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


def _resolved(experiment: Experiment) -> dict[str, Any]:
    """All settings, defaults included; a trace file by its absolute path, for processes that work in other folders."""
    settings = experiment.model_dump(mode="json")
    if "path" in settings["traces"]:
        settings["traces"]["path"] = str(Path(settings["traces"]["path"]).resolve())
    return settings


def _write_if_changed(root: Path, key: str, data: bytes) -> None:
    store = Store(root)
    if not store.exists(key) or store.read_bytes(key) != data:
        store.write_bytes(key, data)


def differences(old: Any, new: Any, prefix: str = "") -> list[tuple[str, str, str]]:
    """`(dotted key, old value, new value)` for every leaf that differs; list items with a name go by it."""
    if isinstance(old, list) and isinstance(new, list) and _named(old) and _named(new):
        old, new = ({item["name"]: item for item in side} for side in (old, new))
        if [*old] != [*new] and {*old} == {*new}:
            return [(prefix, f"order {', '.join(old)}", f"order {', '.join(new)}")]
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            name = f"{prefix}.{key}" if prefix else str(key)
            found += differences(old.get(key, _ABSENT), new.get(key, _ABSENT), name)
        return found
    return [] if old == new else [(prefix, _short(old), _short(new))]


def _named(items: list[Any]) -> bool:
    return bool(items) and all(isinstance(item, dict) and "name" in item for item in items)


def _short(value: Any) -> str:
    text = value if value == _ABSENT else repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
