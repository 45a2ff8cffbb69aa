"""Runs the rounds of a segment."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from curtail_pipeline.flower.server import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    serve(grid, context)
