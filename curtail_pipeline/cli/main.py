"""`curtail`: the command line. Every command imports what it needs when it runs.

Exit codes: 0 done, 1 failed with a one-paragraph error, 2 wrong usage. With `--json` the last line of standard output
is one JSON object; logs go to standard error.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curtail_pipeline.cli.deploy import deploy_app
from curtail_pipeline.cli.file_options import Reading, takes_file_options
from curtail_pipeline.cli.options import ExperimentOption, JsonOption, OutOption
from curtail_pipeline.cli.remote_sites import site_app, superlink, worker
from curtail_pipeline.cli.reproduce import reproduce
from curtail_pipeline.errors import FULL_DISK, CurtailError, is_out_of_space
from curtail_pipeline.garbage import seldom_collected

if TYPE_CHECKING:
    from curtail_pipeline.settings.experiment import ClockMode
    from curtail_pipeline.stages.project import Project

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
federation_app = typer.Typer(no_args_is_help=True, help="The local federation: SuperLink, SuperNodes, trainers.")
checkpoints_app = typer.Typer(no_args_is_help=True, help="Look at and check the checkpoints of an experiment.")
app.command()(reproduce)
app.add_typer(federation_app, name="federation")
app.add_typer(checkpoints_app, name="checkpoints")
app.add_typer(site_app, name="site")
app.add_typer(deploy_app, name="deploy")
app.command()(superlink)
app.command()(worker)
signals_app = typer.Typer(no_args_is_help=True, help="Sources of signals: which there are, and what yours answer.")
app.add_typer(signals_app, name="signals")

SitesOption = Annotated[str | None, typer.Option("--experiment", "-e", help="Its sites; else a site per region.")]
TracesOption = Annotated[Path | None, typer.Option("--traces", help="A trace file in place of the experiment's.")]


def _print_json(value: Any) -> None:
    print(json.dumps(value, default=str), flush=True)


@contextmanager
def _opened(
    experiment: str,
    out: str | None,
    traces: Path | None = None,
    clock: "ClockMode" = "headless",
    file: Reading | None = None,
) -> Iterator["Project"]:
    """The project, with the environment set so that a code location loaded afterwards serves it."""
    from curtail_pipeline.settings.experiment import load_experiment, with_traces
    from curtail_pipeline.stages.project import CLOCK_ENV, EXPERIMENT_ENV, Project

    if traces is None and file:
        option = next(iter(file)).removesuffix("_s").replace("_", "-")
        raise typer.BadParameter(f"--{option} says how the file of --traces is read; give --traces as well")
    chosen = experiment if traces is None else with_traces(load_experiment(experiment), traces, file)
    project = Project.open(chosen, clock, out)
    os.environ[EXPERIMENT_ENV] = str(project.home.experiment_file)
    os.environ[CLOCK_ENV] = clock
    yield project


@app.command()
@takes_file_options
def run(
    file: Reading,
    experiment: ExperimentOption = "laptop",
    traces: TracesOption = None,
    out: OutOption = None,
    json_: JsonOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show Dagster's log too.")] = False,
) -> None:
    """Run the whole pipeline headless, in virtual time; running it again goes on where it stopped."""
    from curtail_pipeline.cli.console import RunConsole, print_summary, warn_checks
    from curtail_pipeline.cli.warned import warn_rounds
    from curtail_pipeline.cli.windows_of_file import said
    from curtail_pipeline.stages.ingest import check_project
    from curtail_pipeline.stages.run_events import Preparing

    with _opened(experiment, out, traces, file=file) as project, project.home.lock():
        os.environ["DAGSTER_HOME"] = str(project.home.dagster)
        from curtail_pipeline.definitions import build
        from curtail_pipeline.orchestration.headless import INTERRUPTS, Headless, open_instance
        from curtail_pipeline.orchestration.interrupts import resending
        from curtail_pipeline.stages.run_report import summarise
        from sensors.membership import membership_sensor

        checks = said(check_project(project))
        warn_checks(checks)
        warn_rounds(project.experiment)
        with RunConsole(project) as console, open_instance(project) as instance:
            headless = Headless(
                project, instance, build(console), membership_sensor, console, "DEBUG" if verbose else "CRITICAL"
            )
            try:
                with resending(*INTERRUPTS):
                    reason = headless.run()
            except INTERRUPTS:
                typer.echo("curtail: interrupted; what is committed stays, run it again to go on from there", err=True)
                raise typer.Exit(130) from None
            console(Preparing("the report"))
            headless.report()
        summary = summarise(project)
        print_summary(summary, reason)
        if json_:
            _print_json({**asdict(summary), "checks": [asdict(check) for check in checks]})


@app.command()
def ui(
    experiment: ExperimentOption = "laptop",
    out: OutOption = None,
    port: Annotated[int, typer.Option(help="Port of the web UI.")] = 3000,
    host: Annotated[str, typer.Option(help="Address the web UI listens on.")] = "127.0.0.1",
    sensors: Annotated[bool, typer.Option(help="Switch the sensor and the schedules on.")] = True,
) -> None:
    """The Dagster UI on the experiment's instance; recorded traces are replayed.

    With a local federation, or on the SuperLink that CURTAIL_SUPERLINK names.
    """
    from curtail_pipeline.cli.ui import services
    from curtail_pipeline.cli.warned import warn_rounds
    from curtail_pipeline.flower.standing import connect
    from curtail_pipeline.stages.run_events import Event, Preparing

    with _opened(experiment, out) as project:
        warn_rounds(project.experiment)
        from curtail_pipeline.definitions import build
        from curtail_pipeline.orchestration.headless import INTERRUPTS, Headless, open_instance
        from curtail_pipeline.orchestration.runs import end_abandoned
        from sensors.membership import membership_sensor

        def say(event: Event) -> None:
            if isinstance(event, Preparing):
                typer.echo(f"preparing {event.what}", err=True)

        try:
            with project.home.lock(), open_instance(project) as instance:
                end_abandoned(instance)
                if not sensors or project.checkpoints.last() is not None:  # the sensor prepares an empty home
                    Headless(project, instance, build(say), membership_sensor, say).prepare()
                with services(project, host, port, sensors) as found:
                    typer.echo("starting the web UI and the federation", err=True)
                    found.prepare()
                    with connect(project.home, project.experiment):
                        typer.echo(f"the UI is at {found.run()} (Ctrl-C ends it)", err=True)
                        found.wait()
        except INTERRUPTS:
            typer.echo("stopped; what is committed stays", err=True)


@app.command()
@takes_file_options
def windows(
    file: Reading,
    traces: Annotated[Path, typer.Option("--traces", help="A trace file, CSV or Parquet.")],
    experiment: SitesOption = None,
    policy: Annotated[str | None, typer.Option(help="paper, threshold, ...")] = None,
    json_: JsonOption = False,
) -> None:
    """Curtailment windows of a trace file, without training."""
    from curtail_pipeline.cli.console import print_windows, warn_checks
    from curtail_pipeline.cli.windows_of_file import windows_of_file
    from curtail_pipeline.settings.experiment import load_experiment

    found = windows_of_file(traces, load_experiment(experiment) if experiment else None, policy, **file)
    warn_checks(found.checks)
    if json_:
        _print_json(asdict(found))
    else:
        print_windows(found)


@app.command()
@takes_file_options
def simulate(
    file: Reading,
    traces: Annotated[Path, typer.Option("--traces", help="A trace file, CSV or Parquet.")],
    experiment: ExperimentOption = "laptop",
    policy: Annotated[str | None, typer.Option(help="In place of the experiment's.")] = None,
    overheads: Annotated[str | None, typer.Option(help="paper or product; the experiment's own by default.")] = None,
    forecast: Annotated[str | None, typer.Option(help="perfect, persistence, seasonal or a file.")] = None,
    start: Annotated[
        str | None, typer.Option(help="ISO 8601, UTC; where the clock or trace starts by default.")
    ] = None,
    deadline: Annotated[float | None, typer.Option(help="Hours after the start.")] = None,
    interpolate: Annotated[bool, typer.Option(help="Straight lines between values, as the paper's analysis.")] = False,
    compare: Annotated[bool, typer.Option(help="All policies: a table and a plot of kg against hours.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Where --compare writes the plot (.svg, .png or .html).")] = None,
    sweep: Annotated[str | None, typer.Option(help="round_s: with rounds of several lengths.")] = None,
    json_: JsonOption = False,
) -> None:
    """What-if: hours, energy, CO2, and how far from the best possible, without training."""
    from curtail_pipeline.cli.console import print_comparison, print_simulation, print_sweep, warn_checks
    from curtail_pipeline.cli.simulate_file import check_usage, compare_file, simulate_file, sweep_file, what_if
    from curtail_pipeline.cli.windows_of_file import said
    from curtail_pipeline.simulation.policy_table import as_json

    check_usage(compare, plot, policy, interpolate, sweep)
    options = what_if(overheads, forecast, start, deadline, file)
    if compare:
        table, checks = compare_file(traces, experiment, plot, options)
        warn_checks(said(checks))
        if json_:
            _print_json({"policies": as_json(table), "checks": [asdict(check) for check in said(checks)]})
        else:
            print_comparison(table, plot)
        return
    if sweep is not None:
        lengths, checks = sweep_file(traces, experiment, policy, interpolate, options)
        warn_checks(said(checks))
        if json_:
            _print_json({"sweep": lengths, "checks": [asdict(check) for check in said(checks)]})
        else:
            print_sweep(lengths)
        return
    result, checks = simulate_file(traces, experiment, policy, interpolate, options)
    warn_checks(said(checks))
    if json_:
        _print_json({**result, "checks": [asdict(check) for check in said(checks)]})
    else:
        print_simulation(result)


@signals_app.command("list")
def signals_list(json_: JsonOption = False) -> None:
    """Every source: its kinds, what it needs, whether it can define windows."""
    from curtail_pipeline.cli.console import print_sources
    from curtail_pipeline.cli.signals_listed import SOURCES

    if json_:
        _print_json({"sources": [asdict(source) for source in SOURCES]})
    else:
        print_sources(SOURCES)


@signals_app.command("check")
def signals_check(experiment: ExperimentOption = "laptop", json_: JsonOption = False) -> None:
    """Ask each configured source for one day and print what came."""
    from curtail_pipeline.cli.console import print_answers
    from curtail_pipeline.cli.signals_listed import ask_sources
    from curtail_pipeline.settings.experiment import load_experiment

    answers = ask_sources(load_experiment(experiment))
    if json_:
        _print_json({"answers": [asdict(answer) for answer in answers]})
    else:
        print_answers(answers)
    if any(answer.error for answer in answers):
        raise typer.Exit(1)


@federation_app.command("up")
def federation_up(experiment: ExperimentOption = "laptop", out: OutOption = None) -> None:
    """Start the SuperLink, and a SuperNode and a trainer per site; they stay until `down`."""
    from curtail_pipeline.flower.standing import local_federation

    with _opened(experiment, out) as project:
        _print_json(local_federation(project.home, project.experiment).up().model_dump(mode="json"))


@federation_app.command("down")
def federation_down(experiment: ExperimentOption = "laptop", out: OutOption = None) -> None:
    """Stop it and everything it started."""
    from curtail_pipeline.flower.standing import local_federation

    with _opened(experiment, out) as project:
        stopped = local_federation(project.home, project.experiment).down()
        typer.echo("stopped" if stopped else "no federation is running")


@federation_app.command("status")
def federation_status(experiment: ExperimentOption = "laptop", out: OutOption = None) -> None:
    """What runs, as JSON."""
    from curtail_pipeline.flower.standing import local_federation

    with _opened(experiment, out) as project:
        _print_json(local_federation(project.home, project.experiment).status().model_dump(mode="json"))


@checkpoints_app.command("list")
def checkpoints_list(experiment: ExperimentOption = "laptop", out: OutOption = None, json_: JsonOption = False) -> None:
    """A row per committed checkpoint."""
    from curtail_pipeline.cli.console import print_checkpoints

    with _opened(experiment, out) as project:
        from curtail_pipeline.stages.checkpoint_rows import checkpoint_rows

        rows = checkpoint_rows(project)
        if json_:
            _print_json({"checkpoints": [asdict(row) for row in rows]})
        else:
            print_checkpoints(rows)


@checkpoints_app.command("show")
def checkpoints_show(key: str, experiment: ExperimentOption = "laptop", out: OutOption = None) -> None:
    """The manifest of a checkpoint, and tokens per site, epoch and share."""
    with _opened(experiment, out) as project:
        from curtail_pipeline.stages.account import show_checkpoint

        _print_json(show_checkpoint(project, key))


@checkpoints_app.command("verify")
def checkpoints_verify(
    key: Annotated[str | None, typer.Argument(help="One checkpoint; the whole chain by default.")] = None,
    experiment: ExperimentOption = "laptop",
    out: OutOption = None,
) -> None:
    """Hash every file again and check that each checkpoint follows from its parent."""
    with _opened(experiment, out) as project:
        if key is not None:
            project.checkpoints.verify(key)
            project.checkpoints.verify_link(key)
            typer.echo(f"{key} is intact")
        else:
            typer.echo(f"{len(project.checkpoints.verify_chain())} checkpoints are intact")


@checkpoints_app.command("repair")
def checkpoints_repair(
    key: Annotated[str | None, typer.Argument(help="One checkpoint; every damaged one by default.")] = None,
    experiment: ExperimentOption = "laptop",
    out: OutOption = None,
) -> None:
    """Make damaged files again, by copying or by training the segment again; what is whole is not touched."""
    with _opened(experiment, out) as project:
        from curtail_pipeline.cli.console import RunConsole
        from curtail_pipeline.stages.repair import repair_all, repair_checkpoint

        with RunConsole(project) as console:
            done = [repair_checkpoint(project, key, console)] if key else repair_all(project, console)
            for repaired in done:
                typer.echo(str(repaired))
        if key is None:
            typer.echo(f"{len(project.checkpoints.verify_chain())} checkpoints are intact")


@checkpoints_app.command("export")
def checkpoints_export(key: str, dest: str, experiment: ExperimentOption = "laptop", out: OutOption = None) -> None:
    """Copy a checkpoint's Hugging Face folder, with a model card, to a new folder or to hf://owner/name."""
    with _opened(experiment, out) as project:
        from curtail_pipeline.stages.export import HUB, export_checkpoint

        where = export_checkpoint(project, key, dest if dest.startswith(HUB) else str(Path(dest).absolute()))
        typer.echo(f"{key} is at {where}")


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Which; an unknown name lists them.")],
) -> None:
    """One benchmark; JSON on the last line. `--option value` is handed to it."""
    from curtail_pipeline.cli.bench import run_benchmark

    _print_json(run_benchmark(name, context.args))


@app.command()
def health() -> None:
    """Exit with 0 when the role this container runs answers."""
    from curtail_pipeline.cli.health import check

    raise typer.Exit(0 if check() else 1)


def main() -> None:
    """The entry point: a `CurtailError` is one paragraph on standard error and exit code 1; `kill` is as Ctrl-C."""
    # Also for one that a script starts with `&`, which ignores SIGINT: Dagster handles SIGTERM as it finds SIGINT.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with seldom_collected():
            app()
    except CurtailError as error:
        print(f"curtail: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:
        if not is_out_of_space(error):
            raise
        print(f"curtail: {FULL_DISK}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
