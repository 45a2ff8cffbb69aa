"""Options that many commands take."""

from typing import Annotated

import typer

ExperimentOption = Annotated[
    str, typer.Option("--experiment", "-e", envvar="CURTAIL_EXPERIMENT", help="A name in experiments/ or a YAML file.")
]
OutOption = Annotated[
    str | None, typer.Option("--out", help="The home folder, .curtail/<name> by default; or s3://... for its store.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object as the last line.")]
