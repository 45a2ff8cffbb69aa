"""`curtail reproduce`: the published run's claims on its trace file."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from curtail_pipeline.cli.options import JsonOption


def reproduce(
    traces: Annotated[Path, typer.Option("--traces", help="The published run's trace: mci.csv.")],
    json_: JsonOption = False,
) -> None:
    """The claims of arXiv:2602.22760, one by one: published, ours, difference; exit code 1 where one does not hold."""
    from curtail_pipeline.cli.console import print_claims, warn_checks
    from curtail_pipeline.cli.windows_of_file import said
    from curtail_pipeline.settings.experiment import load_experiment
    from curtail_pipeline.signals.whole_file import read_all
    from curtail_pipeline.simulation.paper_claims import reproduce

    paper = load_experiment("paper")
    whole = read_all(traces, paper)
    warn_checks(said(whole.checks))
    found = reproduce(paper, whole.traces)
    if json_:
        print(json.dumps(asdict(found)), flush=True)
    else:
        print_claims(found)
    if not found.all_hold:
        raise typer.Exit(1)
