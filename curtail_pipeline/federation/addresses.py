"""The pre-signed addresses that an order brings to a site without credentials of the store."""

from pathlib import PurePosixPath

from curtail_pipeline.federation.orders import Order, agent_key
from curtail_pipeline.federation.segment_state import DELTA, WEIGHTS
from curtail_pipeline.scheduling.reconcile import MEMBERSHIP_KEY
from curtail_pipeline.storage.links import Links
from curtail_pipeline.storage.store import Store
from curtail_pipeline.tokens.ranges import parse_ranges

LINKS_S = 24 * 3600
"""How long they are good: above the longest round."""


def links_of(store: Store, order: Order) -> Links:
    """Of what a site's round reads and writes; inner states that are not merged stay with it.

    Raises:
        StoreError: the store is a folder.
    """
    read = [order.parent.key, order.config, order.experiment_uri, MEMBERSHIP_KEY]
    read += [
        key
        for key in (
            order.stop,
            order.late,
            order.shared and order.shared.key,
            order.delta and order.delta.key,
            order.own and order.own.key,
        )
        if key
    ]
    if order.coming:  # what is signed need not be there yet
        place = PurePosixPath(order.coming).parent
        read += [order.coming, f"{place}/{WEIGHTS}", f"{place}/{DELTA}"]
    for owner in sorted({span.owner for span in parse_ranges(order.lease, order.site)}):
        read += [f"shards/{owner}/{name}" for name in store.list(f"shards/{owner}")]
    written = [order.out, agent_key(order.site), *(key for key in (order.inner_out, order.delivered) if key)]
    return Links(
        get={key: store.sign("GET", key, LINKS_S) for key in read},
        put={key: store.sign("PUT", key, LINKS_S) for key in written},
    )
