"""The share of a round that an exchange takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curtail_pipeline.benchmarks.projection import PARAMETERS, ExchangeCosts, not_training

AMOUNT = st.floats(0, 1e10)
SECONDS = st.floats(0, 1e4)
COSTS = st.builds(ExchangeCosts, AMOUNT, AMOUNT, SECONDS, SECONDS, SECONDS)


def test_float32_over_an_ordinary_link() -> None:
    """Six of ten minutes, before anything is computed."""
    plain = ExchangeCosts(4 * PARAMETERS, 4 * PARAMETERS, 0, 0, 0)
    assert plain.transfer_s(100) == pytest.approx(359, abs=0.1)
    assert not_training(plain) == pytest.approx(0.5984, abs=1e-4)
    assert not_training(plain, overlap=True) == 0
    assert not_training(plain, overlap=True, round_s=300) == pytest.approx(59 / 300, abs=1e-3)


def test_computing_at_the_site_is_not_hidden_and_merging_is() -> None:
    costs = ExchangeCosts(0, 0, 3, 60, 9)
    assert not_training(costs) == pytest.approx(0.12) and not_training(costs, overlap=True) == pytest.approx(0.02)
    assert not_training(costs.on(4)) == pytest.approx(0.03)


@given(costs=COSTS, round_s=st.floats(1, 1e4), mbit_s=st.floats(1, 1e4), factor=st.floats(1, 100))
def test_its_bounds(costs: ExchangeCosts, round_s: float, mbit_s: float, factor: float) -> None:
    waits = not_training(costs, round_s=round_s, mbit_s=mbit_s)
    hidden = not_training(costs, round_s=round_s, mbit_s=mbit_s, overlap=True)
    assert 0 <= hidden <= waits <= 1
    assert not_training(costs.scaled(factor), round_s=round_s, mbit_s=mbit_s) >= waits
    assert not_training(costs, round_s=round_s, mbit_s=2 * mbit_s) <= waits


@pytest.mark.parametrize(("round_s", "mbit_s"), [(0, 100), (600, 0), (-1, 100)])
def test_what_cannot_be_is_told(round_s: float, mbit_s: float) -> None:
    with pytest.raises(ValueError, match="give positive ones"):
        not_training(ExchangeCosts(1, 1, 1, 1, 1), round_s=round_s, mbit_s=mbit_s)
