"""One verb per asset, on an opened project: what Dagster, the command line and tests call.

Decided here: which steps make an asset, and what is stored under which key. Never who trains, what a gram is, or how an
update is merged.
"""
