"""The Flower app of a curtail_pipeline segment."""
