"""The store, checkpoints and their manifests."""
