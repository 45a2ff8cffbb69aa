"""The earlier name of `curtail bench train`."""

from curtail_pipeline.benchmarks.bench_train import run

__all__ = ["run"]
