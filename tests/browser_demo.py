"""A web UI that runs on a demo experiment, as tests ask it."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RUNS = """
{ runsOrError(limit: 50) { ... on Runs { results {
    runId jobName status startTime endTime assetSelection { path } tags { key value } } } } }
"""


@dataclass(frozen=True)
class Demo:
    """A UI that runs."""

    home: Path
    url: str
    log: Path

    def ask(self, query: str, **variables: Any) -> Any:
        """The answer of the GraphQL endpoint; None where it does not answer."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.loads(answer.read())["data"]
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def runs(self) -> list[dict[str, Any]]:
        """The newest first, tags as a dict."""
        found = (self.ask(RUNS) or {}).get("runsOrError", {}).get("results", [])
        return [{**run, "tags": {tag["key"]: tag["value"] for tag in run["tags"]}} for run in found]
