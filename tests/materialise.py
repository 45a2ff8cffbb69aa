"""Materialise checkpoint keys of a home through its code location: `python materialise.py HOME KEY...`."""

import json
import os
import sys
from pathlib import Path


def main(home: Path, keys: list[str]) -> None:
    os.environ |= {
        "CURTAIL_EXPERIMENT": str(home / "experiment.yaml"),
        "CURTAIL_CLOCK": "headless",
        "DAGSTER_HOME": str(home / "dagster"),
    }
    import dagster as dg

    from curtail_pipeline.definitions import defs

    found = {}
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        job = defs.resolve_implicit_global_asset_job_def()
        for key in keys:
            result = job.execute_in_process(
                instance=instance, partition_key=key, asset_selection=[dg.AssetKey("aggregated_checkpoint")]
            )
            (event,) = result.get_asset_materialization_events()
            metadata = event.materialization.metadata
            found[key] = {
                name: metadata[name].value
                for name in ("identical", "replayed_sha256", "replayed_steps", "started_fresh")
            }
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
