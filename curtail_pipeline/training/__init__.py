"""Model presets, optimisers, the resident site trainer, evaluation."""
