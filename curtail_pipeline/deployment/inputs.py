"""The files of its own machine that an experiment names, and where a container finds them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.storage.folder_store import is_uri
from curtail_pipeline.storage.records import Json

INPUTS = "/inputs"
_GLOB = "*?["


@dataclass(frozen=True)
class Mount:
    """A file or folder, mounted read-only."""

    source: Path
    target: str


def with_mounts(experiment: Experiment) -> tuple[dict[str, Json], list[Mount]]:
    """The experiment as it was given, with every path of traces, text and on-site generation as a container has it.

    Without provisioners: a container's site is started with it.
    """
    content: dict[str, Json] = experiment.model_dump(mode="json", exclude_unset=True)
    mounts: dict[Path, Mount] = {}

    def moved(path: str) -> str:
        if is_uri(path):
            return path
        whole = Path(path).expanduser().resolve()
        parts = whole.parts
        glob = next((n for n, part in enumerate(parts) if any(sign in part for sign in _GLOB)), len(parts))
        base = Path(*parts[:glob])
        mount = mounts.setdefault(base, Mount(base, f"{INPUTS}/{len(mounts)}/{base.name}"))
        return str(Path(mount.target, *parts[glob:]))

    traces = dict(_mapping(content["traces"]))
    if "sources" in traces:
        traces["sources"] = [_moved_path(_mapping(source), moved) for source in _items(traces["sources"])]
    content["traces"] = _moved_path(traces, moved)
    if experiment.corpus.source != "embedded":
        content["corpus"] = {**_mapping(content["corpus"]), "source": moved(experiment.corpus.source)}
    sites = []
    for site in map(_mapping, _items(content["sites"])):
        site.pop("provisioner", None)  # whoever runs the containers starts and stops them
        own = site.get("on_site")
        sites.append({**site, "on_site": _moved_path(_mapping(own), moved)} if own is not None else site)
    content["sites"] = sites
    return content, list(mounts.values())


def _moved_path(section: dict[str, Json], moved: Callable[[str], str]) -> dict[str, Json]:
    path = section.get("path")
    if path is None:
        return section
    return {**section, "path": moved(path) if isinstance(path, str) else [moved(str(each)) for each in _items(path)]}


def _mapping(value: Json) -> dict[str, Json]:
    assert isinstance(value, dict)
    return value


def _items(value: Json) -> list[Json]:
    assert isinstance(value, list)
    return value
