"""Jobs: training jobs over one checkpoint, the daily and intraday ones over days.

An asset job has one kind of partition. The daily one has days, so that it starts from `trace_ingestion`, which logs a
`carbon_traces` of each region.
"""

import dagster as dg

SEGMENT_ASSETS = dg.AssetSelection.assets("aggregated_checkpoint", "checkpoint_evaluation", "emissions_ledger")

local_training = dg.define_asset_job(
    "local_training",
    SEGMENT_ASSETS,
    description="One segment at one site: train, evaluate, account.",
    executor_def=dg.in_process_executor,
)
federated_rounds = dg.define_asset_job(
    "federated_rounds",
    SEGMENT_ASSETS,
    description="One segment of Flower rounds over two or more sites: train and merge, evaluate, account.",
    executor_def=dg.in_process_executor,
)
corpus_preparation = dg.define_asset_job(
    "corpus_preparation",
    dg.AssetSelection.assets("tokenizer", "training_shards", "heldout_shard"),
    description="Tokenizer, the token shards of one site and the held-out shard.",
    executor_def=dg.in_process_executor,
)
reporting = dg.define_asset_job(
    "reporting",
    dg.AssetSelection.assets("emissions_report"),
    description="The emissions report over all checkpoints.",
    executor_def=dg.in_process_executor,
)
daily_pipeline = dg.define_asset_job(
    "daily_pipeline",
    dg.AssetSelection.assets("trace_ingestion", "curtailment_windows", "what_if", "emissions_report"),
    description=(
        "Whole UTC days: traces of all regions with their checks, windows of all sites, what every policy would have "
        "made of each day, and the report. Any number of consecutive days is one run."
    ),
    executor_def=dg.in_process_executor,
)
intraday_pipeline = dg.define_asset_job(
    "intraday_pipeline",
    dg.AssetSelection.assets("trace_ingestion", "curtailment_windows"),
    description="Traces of all regions and windows of all sites, nothing else; cheap enough for every five minutes.",
    executor_def=dg.in_process_executor,
)
