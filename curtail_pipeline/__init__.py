"""Pretraining of language models on renewable power that would otherwise be curtailed."""

__version__ = "0.1.0"
