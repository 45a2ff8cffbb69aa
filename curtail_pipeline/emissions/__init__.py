"""Where a gram is counted, once: power intervals times a held signal; baselines, report and model card from it.

Decided here: kWh, grams, and what is unaccounted. Never when power is drawn.
"""
