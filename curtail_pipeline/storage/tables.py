"""Parquet tables in the store, written atomically and read with polars."""

import io
from collections.abc import Iterable

import polars as pl

from curtail_pipeline.errors import StoreError
from curtail_pipeline.storage.store import Store

REPORT_KEY = "report/index.html"


def write_table(store: Store, key: str, table: pl.DataFrame) -> None:
    """Replace the table of this key as a whole."""
    buffer = io.BytesIO()
    table.write_parquet(buffer, compression="zstd")
    store.write_bytes(key, buffer.getvalue())


def read_table(store: Store, key: str) -> pl.DataFrame:
    """Read one table.

    Raises:
        StoreError: absent, or not readable as Parquet.
    """
    return parse_table(store.read_bytes(key), f"{key} in the store {store.uri}")


def parse_table(data: bytes, source: str) -> pl.DataFrame:
    """The table in these bytes; `source` names it in errors.

    Raises:
        StoreError: not readable as Parquet.
    """
    try:
        return pl.read_parquet(io.BytesIO(data))
    except pl.exceptions.PolarsError as error:
        raise StoreError(f"{source} is not a readable Parquet table ({error}); materialise it again") from error


def read_tables(store: Store, keys: Iterable[str]) -> pl.DataFrame | None:
    """Concatenate the tables that exist among the keys; None when none does."""
    found = [read_table(store, key) for key in keys if store.exists(key)]
    return pl.concat(found) if found else None


def trace_key(day: str, region: str) -> str:
    return f"traces/{day}/{region}.parquet"


def forecast_key(day: str, region: str) -> str:
    """Forecasts issued on this day."""
    return f"forecasts/{day}/{region}.parquet"


def windows_key(day: str) -> str:
    return f"windows/{day}.parquet"


BETWEEN = "between checkpoints"
"""In a ledger, of what was drawn since the last checkpoint: the next one's ledger will have it."""
BETWEEN_KEY = "emissions/between_checkpoints.parquet"


def ledger_key(key: str) -> str:
    """Energy and CO2 of a checkpoint."""
    return f"emissions/{key}.parquet"


def windows_state_key(day: str) -> str:
    """What the window rule carries over from this day into the next."""
    return f"windows/{day}.state.json"


def derivation_key(day: str) -> str:
    """What the windows of this day were derived from."""
    return f"windows/{day}.derivation.json"


def attempt_key(day: str, region: str) -> str:
    """What the last attempt to ingest a region's day came to."""
    return f"ingestion/{day}/{region}.json"
