"""Dagster things that are neither asset nor sensor: jobs, partitions, resources, IO, metadata, the headless run.

Decided here: how the library's stages look in Dagster. Never what they do.
"""
