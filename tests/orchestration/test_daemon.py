"""The daemon that the UI starts."""

import subprocess
import sys


def test_its_sensors_are_asked_every_second() -> None:
    """Also tells when a new Dagster has renamed what is set."""
    code = (
        "import curtail_pipeline.orchestration.daemon, inspect; from dagster._daemon import sensor; "
        "assert 'MIN_INTERVAL_LOOP_TIME' in inspect.getsource(sensor.execute_sensor_iteration_loop); "
        "print(sensor.MIN_INTERVAL_LOOP_TIME)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "1"
