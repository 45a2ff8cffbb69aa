"""What starts runs: the membership sensor and the schedules. Decisions are pure functions of `curtail_pipeline`."""
