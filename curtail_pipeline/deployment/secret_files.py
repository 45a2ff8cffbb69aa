"""The secrets of a deployment, made once: a folder that its owner alone can enter.

Docker mounts each file into the containers that need it, with the file's own mode; they run as a user of their own, so
that the files can be read by all and the folder by none. What was made stays, so that running containers go on.
"""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path

from curtail_pipeline.errors import SettingsError
from curtail_pipeline.flower.keys import lacking_hosts, make_keys, public_key_of

DATABASE = ("pg_service.conf", "postgres_password")
STORE = ("store_user", "store_password")
TLS = ("ca.crt", "superlink.crt", "superlink.key")
CREDENTIALS = "aws_credentials"
HOSTS = ("superlink", "front")
"""Names of services under which the SuperLink is reached."""


def make_secrets(
    folder: Path, sites: Sequence[str], hosts: Sequence[str], own_store: bool, given: Sequence[str] = ()
) -> tuple[str, ...]:
    """Make those that are missing; the names of all that services mount, but for those of sites (`sites/<name>`).

    Args:
        hosts: names and addresses under which sites elsewhere reach the SuperLink. Where its certificate is without one
            of them, another is signed by the same authority.
        own_store: the store is a service of the deployment; otherwise `aws_credentials` has to be there.
        given: those that only the user has: of live signals.

    Raises:
        SettingsError: what only the user has is not there.
        FederationError: a host is no name, or one half of a key is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    password = _kept(folder / "postgres_password", lambda: secrets.token_urlsafe(24))
    service = {"host": "postgres", "port": "5432", "dbname": "dagster", "user": "dagster", "password": password}
    _kept(folder / "pg_service.conf", lambda: _section("dagster", service))
    if own_store:
        user = _kept(folder / "store_user", lambda: "curtail")
        key = _kept(folder / "store_password", lambda: secrets.token_urlsafe(24))
        account = {"aws_access_key_id": user, "aws_secret_access_key": key}
        _kept(folder / CREDENTIALS, lambda: _section("default", account))
    elif not (folder / CREDENTIALS).exists():
        raise SettingsError(
            f"{folder / CREDENTIALS} does not exist; write it as ~/.aws/credentials is, a section [default] with the "
            "key that may use the bucket, and run this again"
        )
    for name in given:
        if not (folder / name).exists():
            raise SettingsError(f"{folder / name} does not exist; write {name.upper()} into it, and run this again")
    if lacking_hosts(folder / "superlink.crt", [*HOSTS, *hosts]):
        make_keys(folder, [*HOSTS, *hosts])
    for site in sites:
        public_key_of(folder / "sites" / site)
    names = (*DATABASE, *(STORE if own_store else ()), CREDENTIALS, *TLS, *given)
    keys = (f"sites/{site}{end}" for site in sites for end in ("", ".pub"))
    for name in (*names, *keys):  # and nothing else that lies there
        (folder / name).chmod(0o644)
    return names


def _kept(path: Path, make: Callable[[], str]) -> str:
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(make(), encoding="utf-8")
    return path.read_text(encoding="utf-8")


def _section(name: str, values: dict[str, str]) -> str:
    return "".join([f"[{name}]\n", *(f"{key}={value}\n" for key, value in values.items())])
