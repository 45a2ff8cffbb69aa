"""Which tokens count: ranges, leases and the ledger.

Decided here: that every token of a lineage counts once. Never how text becomes tokens.
"""
