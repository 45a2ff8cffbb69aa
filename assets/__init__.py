"""What Dagster materialises. Each module is one group; the work is in `curtail_pipeline`."""
