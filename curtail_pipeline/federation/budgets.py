"""How the last steps of a job are divided, so that its sites end together."""

from collections.abc import Mapping


def step_budgets(left: int, speeds: Mapping[str, float]) -> dict[str, int]:
    """Steps per site, in proportion to its speed; they sum to `left`.

    What rounding leaves goes to the sites with the largest fractions, by name where those are alike.

    Args:
        speeds: tokens per second as last measured; a site with 0 was not measured and counts as the mean of the others.
    """
    known = [speed for speed in speeds.values() if speed > 0]
    usual = sum(known) / len(known) if known else 1.0
    weights = {site: speed if speed > 0 else usual for site, speed in speeds.items()}
    total = sum(weights.values())
    exact = {site: left * weight / total for site, weight in weights.items()}
    budgets = {site: int(share) for site, share in exact.items()}
    rest = left - sum(budgets.values())
    for site in sorted(exact, key=lambda site: (budgets[site] - exact[site], site))[: max(rest, 0)]:
        budgets[site] += 1
    return budgets
