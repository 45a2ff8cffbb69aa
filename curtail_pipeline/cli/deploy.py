"""Commands of a deployment: its compose file, keys, store, and the admission of its sites."""

from pathlib import Path
from typing import Annotated

import typer

from curtail_pipeline.cli.options import ExperimentOption, OutOption
from curtail_pipeline.cli.remote_sites import AuthorityOption, SuperlinkOption
from curtail_pipeline.cli.written_files import make_room, writing

deploy_app = typer.Typer(no_args_is_help=True, help="What a deployment needs beside the images.")


@deploy_app.command("compose")
def deploy_compose(
    experiment: ExperimentOption = "laptop",
    file: Annotated[Path, typer.Option(help="The compose file to write.")] = Path("compose.yaml"),
    secrets: Annotated[
        Path | None, typer.Option(help="Folder of the secrets, made where they are missing; `secrets` beside the file.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="s3://bucket/prefix of your own, in place of a store in the deployment.")
    ] = None,
    endpoint: Annotated[str | None, typer.Option(help="Of that bucket's server; Amazon's when not given.")] = None,
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address under which sites elsewhere reach it; repeatable.")
    ] = None,
    region: Annotated[str | None, typer.Option(help="Of that bucket; us-east-1 when not given.")] = None,
    elsewhere: Annotated[
        list[str] | None, typer.Option(help="A site that runs on another machine, without a service here; repeatable.")
    ] = None,
    build: Annotated[
        str | None, typer.Option(help="Folder with the Dockerfile, as seen from the file; where images are built.")
    ] = None,
) -> None:
    """Write the compose file of an experiment, a service per site, with its keys and passwords. Again: they stay."""
    from curtail_pipeline.deployment.compose import Deployment, compose_file, given_secrets
    from curtail_pipeline.deployment.secret_files import make_secrets
    from curtail_pipeline.settings.experiment import load_experiment

    for option, value in (("--endpoint", endpoint), ("--region", region)):
        if value is not None and store is None:
            raise typer.BadParameter(f"{option} is that of the bucket of --store; give --store as well")
    if elsewhere and (store is None or not host):
        raise typer.BadParameter(
            "--elsewhere is a site that reaches neither a store of this deployment nor its names; give --store with a "
            "bucket that it reaches, and --host"
        )
    loaded = load_experiment(experiment)
    folder = secrets if secrets is not None else file.parent / "secrets"
    make_room("--file", file)
    options = [("--file", str(file)), ("--secrets", secrets), ("--store", store), ("--endpoint", endpoint)]
    options += [("--region", region), ("--build", build), *(("--host", name) for name in host or ())]
    options += [("--elsewhere", name) for name in elsewhere or ()]
    words = [f"{option} {value}" for option, value in options if value is not None]
    command = " ".join([f"curtail deploy compose -e {experiment}", *words])
    seen = f"./{folder.relative_to(file.parent)}" if folder.is_relative_to(file.parent) else str(folder.resolve())
    sites = [site.name for site in loaded.sites]
    with writing("--secrets", folder):
        names = make_secrets(folder, sites, host or (), store is None, given_secrets(loaded))
    deployment = Deployment(
        file, seen, command, store, endpoint, build, region or Deployment.region, tuple(elsewhere or ())
    )
    with writing("--file", file):
        file.write_text(compose_file(loaded, deployment, names), encoding="utf-8")
    away = set(elsewhere or ())
    gpu = any(site.device != "cpu" and site.name not in away for site in loaded.sites)
    profile = "--profile gpu " if gpu else ""
    typer.echo(f"{file}: docker compose -f {file} {profile}up --detach; keep {folder}, with the keys and passwords")
    for name in elsewhere or ():
        typer.echo(
            f"{name}: bring it {folder / 'ca.crt'} and {folder / 'sites' / name}; there: curtail site run {name} "
            f"--linked --superlink {(host or [''])[0]}:8443 --ca ca.crt --key {name}"
        )


@deploy_app.command("keys")
def deploy_keys(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    host: Annotated[list[str], typer.Option(help="Name or address under which sites reach the SuperLink; repeatable.")],
) -> None:
    """A private authority for a trial, and the SuperLink's certificate. Once more: the same authority signs again."""
    from curtail_pipeline.flower.keys import make_keys

    with writing("FOLDER", folder):
        made = make_keys(folder, host)
    typer.echo(f"{made.authority}: give it to every site; keep {made.authority_key} apart from the SuperLink")


@deploy_app.command("admit")
def deploy_admit(
    folder: Annotated[Path, typer.Argument(help="Holds a public key per site, NAME.pub.")],
    superlink: SuperlinkOption,
    ca: AuthorityOption = None,
) -> None:
    """Admit every site whose public key is in a folder. Who was admitted stays so, and who was put out stays out."""
    from curtail_pipeline.errors import FederationError
    from curtail_pipeline.flower.control_api import Control
    from curtail_pipeline.flower.keys import public_key_of

    found = sorted(folder.glob("*.pub"))
    if not found:
        raise FederationError(
            f"{folder} has no NAME.pub; `curtail site register` or `curtail deploy compose` makes them"
        )
    with Control(superlink, ca) as control:
        for path in found:
            typer.echo(f"{path.stem}: {control.admit(path.stem, public_key_of(path.with_suffix('')))}")


@deploy_app.command("prepare")
def deploy_prepare(
    experiment: ExperimentOption = "laptop",
    out: OutOption = None,
    bucket: Annotated[bool, typer.Option("--bucket", help="Make the store's bucket, unless it is there.")] = False,
) -> None:
    """Open an experiment on its store, so that a code server knows its days without reading its trace files."""
    from curtail_pipeline.stages.project import Project, store_of
    from curtail_pipeline.storage.s3_calls import Place, make_bucket

    if bucket:
        place = Place.parse(out or store_of(experiment))
        typer.echo(f"{place.bucket}: {'made' if make_bucket(place) else 'is there'}")
    project = Project.open(experiment, out=out)
    typer.echo(f"{project.experiment.name}: open on {project.store.uri}")
