"""Commands of a federation over the internet: the SuperLink, its keys, and the sites that join it."""

from pathlib import Path
from typing import Annotated

import typer

from curtail_pipeline.cli.options import ExperimentOption, OutOption
from curtail_pipeline.cli.written_files import writing

site_app = typer.Typer(no_args_is_help=True, help="Sites of a standing SuperLink: admit them, run one, put one out.")

SiteArgument = Annotated[str, typer.Argument(help="The site, as the experiment names it.")]
SuperlinkOption = Annotated[str, typer.Option(envvar="CURTAIL_SUPERLINK", help="host:port of the SuperLink.")]
AuthorityOption = Annotated[
    Path | None,
    typer.Option("--ca", envvar="CURTAIL_CA", help="Certificate of who vouches for the SuperLink; plain HTTP without."),
]


@site_app.command("run")
def site_run(
    name: SiteArgument,
    superlink: SuperlinkOption,
    ca: AuthorityOption = None,
    key: Annotated[
        Path | None, typer.Option(envvar="CURTAIL_SITE_KEY", help="The site's private key, which is registered.")
    ] = None,
    experiment: ExperimentOption = "laptop",
    out: OutOption = None,
    store: Annotated[str | None, typer.Option(envvar="CURTAIL_STORE", help="s3://...: has the experiment too.")] = None,
    linked: Annotated[
        bool, typer.Option("--linked", help="A site of federation.linked: needs neither a store nor an experiment.")
    ] = False,
) -> None:
    """Run a site's trainer and SuperNode until told to stop."""
    from curtail_pipeline.flower.standing import Credentials, run_linked_site, run_site, run_site_of_store
    from curtail_pipeline.stages.project import Project

    if (ca is None) != (key is None):
        raise typer.BadParameter("--ca and --key belong together: TLS and the site's key, or neither")
    credentials = Credentials(ca, key) if ca and key else None
    if linked:
        run_linked_site(name, superlink, credentials)
        return
    if store is not None:
        run_site_of_store(store, name, superlink, credentials)
        return
    project = Project.open(experiment, "live", out)
    project.experiment.site(name)
    limits = project.experiment.federation.limits
    run_site(project.home.federation, project.home.store, name, superlink, credentials, limits)


@site_app.command("register")
def site_register(
    name: SiteArgument,
    superlink: SuperlinkOption,
    key: Annotated[
        Path,
        typer.Option(help="The site's private key; KEY.pub alone is enough. Where neither is there a pair is made."),
    ],
    ca: AuthorityOption = None,
) -> None:
    """Admit a site by its key. To be run where the SuperLink's Control API can be reached."""
    from curtail_pipeline.flower.control_api import Control
    from curtail_pipeline.flower.keys import public_key_of

    with writing("--key", key):
        public = public_key_of(key)
    with Control(superlink, ca) as control:
        node_id = control.register(name, public)
    typer.echo(f"{name} may join as node {node_id}, with the key {key}")


@site_app.command("revoke")
def site_revoke(name: SiteArgument, superlink: SuperlinkOption, ca: AuthorityOption = None) -> None:
    """Put a site out; it takes part in no further round."""
    from curtail_pipeline.flower.control_api import Control

    with Control(superlink, ca) as control:
        control.revoke(name)
    typer.echo(f"{name} may join no more")


def superlink(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8000,
    folder: Annotated[Path, typer.Option(help="Where it keeps its state.")] = Path(".curtail/superlink"),
    keys: Annotated[
        Path | None, typer.Option(help="Folder of `curtail deploy keys`: TLS, and only registered sites join.")
    ] = None,
) -> None:
    """Run a standing SuperLink that sites join with `curtail site run`."""
    from curtail_pipeline.flower.keys import KeyFolder
    from curtail_pipeline.flower.standing import run_superlink

    run_superlink(host, port, folder, KeyFolder(keys) if keys else None)


def worker(
    experiment: ExperimentOption = "laptop",
    host: Annotated[
        str, typer.Option(help="Address to listen on; for the control plane's network alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option()] = 8100,
) -> None:
    """Make and evaluate models for a control plane without torch, which names this one in CURTAIL_WORKER."""
    from curtail_pipeline.stages.model_server import serve
    from curtail_pipeline.stages.project import Project

    serve(lambda: Project.open(experiment), host, port)
