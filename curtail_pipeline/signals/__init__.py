"""Carbon and curtailment signals: providers, normalised traces, checks."""
