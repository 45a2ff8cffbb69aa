"""Dagster things that are neither asset nor sensor: partitions, resources, IO, jobs, the headless replay."""
