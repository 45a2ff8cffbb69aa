"""Providers of grid signals, the normalised trace, and the held signal that everything else reads.

Decided here: what a source said, in which unit, and whether it is plausible. Never what follows from it.
"""
