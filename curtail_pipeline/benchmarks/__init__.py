"""Benchmarks of `curtail bench`: each `bench_NAME.py` has a `run` that measures against a named baseline."""
