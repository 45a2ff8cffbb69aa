"""The pre-signed addresses that an order brings to a site without credentials of the store."""

from collections.abc import Sequence

from curtail_pipeline.federation.orders import Plan, agent_key
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.store import Store
from curtail_pipeline.tokens.ranges import Range, parse_ranges

LINKS_S = 24 * 3600
"""How long they are good: above the longest round."""


def links_of(store: Store, plan: Plan, site: str, weights: str, lease: Sequence[Range], out: str, stop: str) -> Links:
    """Of what a site's round reads and writes; its inner states stay with it.

    Raises:
        StoreError: the store is a folder.
    """
    read = [weights, plan.parent.config, plan.experiment_uri, MEMBERSHIP_KEY, stop]
    for owner in sorted({span.owner for span in parse_ranges(lease, site)}):
        read += [f"shards/{owner}/{name}" for name in store.list(f"shards/{owner}")]
    return Links(
        get={key: store.sign("GET", key, LINKS_S) for key in read},
        put={key: store.sign("PUT", key, LINKS_S) for key in (out, agent_key(site))},
    )
