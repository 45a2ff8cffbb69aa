"""The Parquet IO manager: a partition of a table asset is one Parquet file in the experiment's store.

The key comes from the asset's definition metadata `curtail/key`, a template over the partition's dimensions, so that
tables are found by the library without Dagster.
"""

import dagster as dg
import polars as pl

from curtail_pipeline.orchestration.metadata import table_facts
from curtail_pipeline.orchestration.resources import PipelineResource
from curtail_pipeline.storage.tables import read_table, write_table

KEY_METADATA = "curtail/key"


def _dimensions(key: str) -> dict[str, str]:
    if isinstance(key, dg.MultiPartitionKey):
        return dict(key.keys_by_dimension)
    return {"partition": key}


class TableIOManager(dg.ConfigurableIOManager):
    """Writes and reads polars frames."""

    pipeline: PipelineResource

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        template = str(context.definition_metadata[KEY_METADATA])
        store = self.pipeline.project().store
        key = template.format(**_dimensions(context.partition_key if context.has_partition_key else ""))
        write_table(store, key, obj)
        context.add_output_metadata(table_facts(self.pipeline.project(), key, obj))

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        upstream = context.upstream_output
        assert upstream is not None
        template = str(upstream.definition_metadata[KEY_METADATA])
        store = self.pipeline.project().store
        definition = context.asset_partitions_def
        keys = context.asset_partition_keys if context.has_asset_partitions else [""]
        typed = [_typed(definition, key) for key in keys]
        return pl.concat([read_table(store, template.format(**_dimensions(key))) for key in typed])


def _typed(definition: dg.PartitionsDefinition | None, key: str) -> str:
    if isinstance(definition, dg.MultiPartitionsDefinition) and not isinstance(key, dg.MultiPartitionKey):
        return definition.get_partition_key_from_str(key)
    return key
