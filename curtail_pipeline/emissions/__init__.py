"""Power intervals, the energy ledger, baselines and the report."""
