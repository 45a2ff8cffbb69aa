"""Colours and names that stand for the same thing in every chart; those of the light scheme."""

from collections.abc import Sequence

from curtail_pipeline.emissions.grams import CHARGING

SITE_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
"""Okabe and Ito: distinguishable with any colour vision, on light and on dark. Repeats from the seventh site on."""
STATE_COLOURS = {
    "training": "#1B8A62",
    "idle": "#E0A030",
    "start_up": "#C9B07A",
    "transfer": "#6FA8A0",
    "failed": "#C4515E",
    CHARGING: "#8B80BD",
}
STATE_NAMES = {
    "training": "training",
    "idle": "idle, warm",
    "start_up": "start-up",
    "transfer": "loading, sending, merging",
    "failed": "lost training",
    CHARGING: "battery charging",
}
MODE_COLOURS = {"local": "#5B9BC8", "federated": "#22577A"}
OURS_COLOUR = "#1B8A62"
WINDOW_COLOUR = "#CFEBDD"
SIGNAL_COLOUR = "#3B4252"
INK, SOFT = "#1F2933", "#6B7785"
GROUND, GRID, DOMAIN, VOID, FRAME, PALE = "#FFFFFF", "#E9EDF2", "#C5CDD6", "#F6F8FA", "#E3E8EE", "#B7C1CC"


def site_colours(names: Sequence[str]) -> dict[str, str]:
    """In the order of the experiment's sites."""
    return {name: SITE_COLOURS[i % len(SITE_COLOURS)] for i, name in enumerate(names)}
