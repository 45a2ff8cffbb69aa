"""`python -m curtail_pipeline.cli` is the command `curtail`."""

from curtail_pipeline.cli.main import main

main()
