"""The threads that start and stop the sites of a project, once per process."""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from curtail_pipeline.flower.standing import AUTHORITY_ENV, SUPERLINK_ENV
from curtail_pipeline.provisioning.choice import provisioner_of
from curtail_pipeline.provisioning.keeper import Keeper
from curtail_pipeline.provisioning.presence import Presence
from curtail_pipeline.provisioning.provisioner import ProvisionError
from curtail_pipeline.scheduling.provision import managed
from curtail_pipeline.settings.provisioner_settings import ProvisionerSettings, SubprocessProvisioner
from curtail_pipeline.stages.project import Project
from curtail_pipeline.stages.tick import wants
from curtail_pipeline.storage.folder_store import is_uri

_GUARD = threading.Lock()
_LOCKS: dict[Path, FileLock] = {}
"""Of homes whose sites this process provisions; the system lets go of them when it ends."""
_KEEPERS: dict[tuple[Path, str], tuple[ProvisionerSettings, Keeper]] = {}


def provision(project: Project) -> str:
    """Hand the wishes of the last tick to the sites' threads; returns at once, with what is done.

    Raises:
        ProvisionError: a site's settings name what is not there; the other sites are looked after.
    """
    sites = managed(project.experiment.sites)
    if not sites:
        return "no site has a provisioner"
    wished, errors = wants(project), []
    with _GUARD:
        if not _mine(project.home.root):
            return "another process on this machine starts and stops the sites of this home"
        for site in sites:
            want = wished.sites.get(site.name)
            if want is None:  # nothing was decided yet
                continue
            try:
                _keeper(project, site.name).want(want)
            except ProvisionError as error:
                errors.append(str(error))
    if errors:
        raise ProvisionError("; ".join(errors))
    up = [name for name, want in wished.sites.items() if want.up]
    return f"wanted up: {', '.join(up) or 'no site'}"


def _mine(home: Path) -> bool:
    if home not in _LOCKS:
        lock = FileLock(home / ".provisioning.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            return False
        _LOCKS[home] = lock
    return True


def _keeper(project: Project, name: str) -> Keeper:
    """The site's thread, begun anew when its settings have changed."""
    site, key = project.experiment.site(name), (project.home.root, name)
    known = _KEEPERS.get(key)
    if known is not None and known[0] == site.provisioner:
        return known[1]
    if known is not None:
        known[1].close()
    settings = site.provisioner
    assert settings.kind != "none"
    superlink, authority = os.environ.get(SUPERLINK_ENV), os.environ.get(AUTHORITY_ENV)
    if isinstance(settings, SubprocessProvisioner):
        superlink, authority = settings.superlink or superlink, settings.ca or authority
    presence = Presence(
        project.store, project.experiment.federation.limits, superlink, Path(authority) if authority else None
    )
    provisioner = provisioner_of(site, lambda child, _: _site_command(project, child, name))
    keeper = Keeper(name, provisioner, project.store, presence, settings.start_timeout_s)
    keeper.start()
    _KEEPERS[key] = (settings, keeper)
    return keeper


def _site_command(project: Project, settings: SubprocessProvisioner, name: str) -> Sequence[str]:
    superlink = settings.superlink or os.environ.get(SUPERLINK_ENV)
    authority = settings.ca or os.environ.get(AUTHORITY_ENV)
    if not superlink:
        raise ProvisionError(
            f"site {name}: no SuperLink to join; give provisioner.superlink, host:port, or {SUPERLINK_ENV}"
        )
    if (authority is None) != (settings.key is None):
        raise ProvisionError(f"site {name}: provisioner.ca and provisioner.key belong together; give both, or neither")
    secured = ["--ca", str(authority), "--key", str(settings.key)] if authority else []
    experiment, store = str(project.home.experiment_file), project.home.store
    place = ["--store", store] if is_uri(store) else ["--experiment", experiment, "--out", str(project.home.root)]
    program = [sys.executable, "-m", "curtail_pipeline.cli", "site", "run", name]
    return [*program, "--superlink", superlink, *secured, *place]
