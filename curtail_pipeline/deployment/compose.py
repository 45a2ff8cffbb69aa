"""The compose file of an experiment: the control plane, its store, and a service per site."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jinja2
import yaml

from curtail_pipeline.deployment.inputs import Mount, with_mounts
from curtail_pipeline.errors import SettingsError
from curtail_pipeline.settings.experiment import Experiment
from curtail_pipeline.settings.trace_settings import (
    CombinedTraces,
    ElectricityMapsTraces,
    FileTraces,
    SyntheticTraces,
    WattTimeTraces,
)
from curtail_pipeline.storage.s3_calls import Place

BUCKET = "curtail"
"""Of the deployment's own store."""
ENDPOINT = "http://store:9000"
TEMPLATES = files("curtail_pipeline.deployment") / "templates"


@dataclass(frozen=True)
class SiteService:
    name: str
    slug: str
    """As services and volumes may be called."""
    gpu: bool


@dataclass(frozen=True)
class Deployment:
    """Where a deployment lies and what it uses.

    Args:
        file: the compose file.
        secrets: folder of its secrets, relative to the file.
        command: that writes it again.
        store: `s3://bucket/prefix` of the user's own; None for a service of the deployment.
        endpoint: of that bucket's server; Amazon's when not given.
        region: of that bucket: addresses that are signed for another one are refused.
        elsewhere: sites that run on other machines. They are admitted and have no service here.
        build: folder with the Dockerfile, relative to the file; None where the images are there.
    """

    file: Path
    secrets: str
    command: str
    store: str | None = None
    endpoint: str | None = None
    build: str | None = None
    region: str = "us-east-1"
    elsewhere: tuple[str, ...] = ()


def compose_file(experiment: Experiment, deployment: Deployment, secret_names: Sequence[str]) -> str:
    """The text of the compose file.

    Raises:
        SettingsError: two sites' services would have one name, or one elsewhere is no site.
        StoreError: the store is no `s3://bucket/prefix`.
    """
    sites = _services(experiment)
    content, mounts = with_mounts(experiment)
    federation = content.get("federation")
    linked = [site.name for site in experiment.sites]  # whatever the file says: sites have no account here
    content["federation"] = {**(federation if isinstance(federation, dict) else {}), "linked": linked}
    for name in deployment.elsewhere:
        experiment.site(name)
    own_store = deployment.store is None
    place = Place.parse(deployment.store or f"s3://{BUCKET}/{experiment.name}")
    environment = jinja2.Environment(keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    environment.filters["dollars"] = lambda text: _dollars(text.rstrip())
    environment.filters["quoted"] = lambda text: _dollars(json.dumps(text, ensure_ascii=False))
    here = [site for site in sites if site.name not in deployment.elsewhere]
    return environment.from_string(_template("compose.yaml.j2")).render(
        command=deployment.command,
        file=deployment.file.name if deployment.file.parent == Path() else deployment.file,
        name=experiment.name,
        build=deployment.build,
        clock="replay" if _recorded(experiment) else "live",
        experiment=yaml.safe_dump(content, sort_keys=False, allow_unicode=True),
        experiment_path=f"/experiment/{experiment.name}.yaml",
        store=place.uri,
        bucket=place.bucket,
        endpoint=ENDPOINT if own_store else deployment.endpoint,
        own_store=own_store,
        gate=experiment.federation.heldout_gate is not None,
        region=deployment.region,
        gpu=any(site.gpu for site in here),
        sites=sites,
        here=here,
        secrets=secret_names,
        folder=deployment.secrets,
        given=given_secrets(experiment),
        mounts=", ".join(map(_bind, mounts)),
        dagster=_template("dagster.yaml"),
        front=front("superlink:8000", "/run/secrets"),
    )


def given_secrets(experiment: Experiment) -> tuple[str, ...]:
    """What live signals ask for, as files of lower-case names."""
    found: list[str] = []
    for source in _sources(experiment):
        if isinstance(source, WattTimeTraces):
            found += ["watttime_user", "watttime_password"]
        elif isinstance(source, ElectricityMapsTraces):
            found += ["electricity_maps_token"]
    return tuple(dict.fromkeys(found))


def front(superlink: str, keys: str) -> str:
    """nginx's configuration of what sites reach of a SuperLink at `host:port`; `keys` is where its certificate is."""
    name = "localhost" if superlink.startswith("127.") else superlink.partition(":")[0]
    template = jinja2.Template(_template("superlink.conf.j2"), keep_trailing_newline=True)
    return template.render(superlink=superlink, keys=keys, name=name)


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _dollars(text: str) -> str:
    """As Compose writes what it is not to replace."""
    return text.replace("$", "$$")


def _bind(mount: Mount) -> str:
    bound = {"type": "bind", "source": str(mount.source), "target": mount.target, "read_only": True}
    return _dollars(json.dumps(bound, ensure_ascii=False))


def _services(experiment: Experiment) -> list[SiteService]:
    found: dict[str, SiteService] = {}
    for site in experiment.sites:
        slug = re.sub(r"[^a-z0-9]+", "-", site.name.lower()).strip("-")
        if not slug or slug in found:
            other = f", as that of {found[slug].name!r}" if slug in found else ""
            raise SettingsError(f"the service of site {site.name!r} would be called 'site-{slug}'{other}; rename it")
        found[slug] = SiteService(site.name, slug, site.device != "cpu")
    return list(found.values())


def _recorded(experiment: Experiment) -> bool:
    """Whether its signals are a record, which is replayed."""
    return all(isinstance(source, FileTraces | SyntheticTraces) for source in _sources(experiment))


def _sources(experiment: Experiment) -> Sequence[object]:
    traces = experiment.traces
    return traces.sources if isinstance(traces, CombinedTraces) else [traces]
