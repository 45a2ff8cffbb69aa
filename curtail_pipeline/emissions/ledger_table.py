"""Stored ledgers: Parquet tables of `grams.LEDGER_SCHEMA`."""

import polars as pl

from curtail_pipeline.emissions.grams import LEDGER_SCHEMA
from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.tables import parse_table


def parse_ledger(data: bytes, source: str) -> pl.DataFrame:
    """The ledger in these bytes; `source` names it in errors.

    Raises:
        StoreError: no Parquet table, or one that another version wrote.
    """
    table = parse_table(data, source)
    if table.schema != pl.Schema(LEDGER_SCHEMA):
        differs = [name for name, kind in LEDGER_SCHEMA.items() if table.schema.get(name) != kind]
        raise StoreError(
            f"{source} was written by another version (it has no {', '.join(differs) or 'such columns'}); "
            "materialise emissions_ledger of this checkpoint again"
        )
    return table
