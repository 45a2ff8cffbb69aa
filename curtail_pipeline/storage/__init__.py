"""Where things lie: the store and its keys, tables, clock, home, checkpoints and their manifests.

Decided here: atomicity, identity and what a committed checkpoint is. Never what goes into one.
"""
