"""Where an update is merged: rounds, the outer step, and the messages that all sides share.

Decided here: which updates count and what the next weights are. Never how messages travel (no Flower) or how a site
trains (no torch).
"""
