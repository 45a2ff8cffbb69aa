"""Names that processes of a federation share and that cost nothing to import."""

SUPERVISOR_VARIABLE = "CURTAIL_SUPERVISOR_PID"
"""Set for every process of a local federation: the one that it must not outlive."""


def agent_key(site: str) -> str:
    """Store key of the heartbeat that a site's trainer writes."""
    return f"agents/{site}.json"
