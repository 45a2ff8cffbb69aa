from collections.abc import Iterator

import pytest

from curtail_pipeline.scheduling import plan_search, policy_forecast


@pytest.fixture(scope="module")
def few_walks() -> Iterator[None]:
    """What others' plans and the walk promise does not depend on how many plans are tried."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy_forecast, "PERFECT_WALKS", 150)
        patch.setattr(plan_search, "EARLIER_WALKS_FEW", plan_search.EARLIER_WALKS)
        yield
