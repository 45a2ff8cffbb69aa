"""The ground floor: every section of an experiment file, validated.

Decided here: what can be set, its default and where that is from. Never what follows from a setting.
"""
