"""Where a window is decided: rules over signals, and nothing else.

Decided here: when a site's grid counts as curtailed. Never who trains then, and nothing of Dagster or files.
"""
