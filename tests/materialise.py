"""Materialise checkpoint keys of a home through its code location: `python materialise.py HOME KEY[=CONFIG]...`.

What they need of a federation is one, as beside a UI.

Prints a list: the metadata of each, in order, plain values and JSON only; its `checks` say which asset checks passed.
"""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any


def main(home: Path, wanted: list[str]) -> None:
    os.environ |= {
        "CURTAIL_EXPERIMENT": str(home / "experiment.yaml"),
        "CURTAIL_CLOCK": "headless",
        "DAGSTER_HOME": str(home / "dagster"),
    }
    import dagster as dg

    from curtail_pipeline.definitions import defs
    from curtail_pipeline.flower.standing import connect
    from curtail_pipeline.settings.experiment import load_experiment
    from curtail_pipeline.storage.home import Home

    found: list[dict[str, Any]] = []
    experiment = load_experiment(home / "experiment.yaml")
    one_for_all = connect(Home(home), experiment) if experiment.federation.replay == "spare" else nullcontext()
    with one_for_all, dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        job = defs.resolve_implicit_global_asset_job_def()
        for one in wanted:
            key, _, config = one.partition("=")
            ops = {"ops": {"aggregated_checkpoint": {"config": json.loads(config)}}} if config else None
            result = job.execute_in_process(
                instance=instance,
                partition_key=key,
                asset_selection=[dg.AssetKey("aggregated_checkpoint")],
                run_config=ops,
                raise_on_error=False,
            )
            events = result.get_asset_materialization_events()
            values = {name: value.value for event in events for name, value in event.materialization.metadata.items()}
            plain = {name: value for name, value in values.items() if isinstance(value, str | int | float | dict)}
            errors = [str(step.event_specific_data.error) for step in result.get_step_failure_events()]
            checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
            found.append({"key": key, "success": result.success, "errors": errors, "checks": checks, **plain})
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
