"""What arXiv:2602.22760v1 publishes of its evaluation (sections 5.2 and 5.3), each figure with its place in the paper.

Bars of figures 4 and 5 are labelled in the authors' repository (exalsius/curtail-llm, `figures/barchart_*.pdf`); where
the text has more digits than a bar, the text stands here. Section 5.1 is a timeline and has no figure of its own, and
section 3.4 sizes a round before the evaluation.
"""

from dataclasses import dataclass
from typing import Final, Literal

Unit = Literal["h", "kWh", "kg CO2", "%", "perplexity"]

TWO_SITE_STEPS: Final = 23_366
"""Optimiser steps of the two-site run: the last of its log (evaluation/results/baseline_2_clients.csv)."""


@dataclass(frozen=True)
class Published:
    """One figure."""

    name: str
    value: float
    unit: Unit
    place: str


TABLE: Final = "Table 1"
SHARES: Final = "Figure 4"
EMISSIONS: Final = "Figure 5"

PUBLISHED: Final = (
    Published("runtime, centralized", 17.8, "h", TABLE),
    Published("runtime, two-site FL", 11.1, "h", TABLE),
    Published("runtime, curtailment-aware", 14.6, "h", TABLE),
    Published("energy, centralized", 36.0, "kWh", TABLE),
    Published("energy, two-site FL", 36.1, "kWh", TABLE),
    Published("energy, curtailment-aware", 37.7, "kWh", TABLE),
    Published("best train perplexity, centralized", 14.7, "perplexity", TABLE),
    Published("best train perplexity, two-site FL", 15.2, "perplexity", TABLE),
    Published("best train perplexity, curtailment-aware", 14.6, "perplexity", TABLE),
    Published("final train perplexity, centralized", 14.8, "perplexity", "Section 5.2"),
    Published("final train perplexity, two-site FL", 15.5, "perplexity", "Section 5.2"),
    Published("final train perplexity, curtailment-aware", 15.1, "perplexity", "Section 5.2"),
    Published("curtailed energy, centralized in California", 33, "%", SHARES),
    Published("curtailed energy, centralized in Texas", 37, "%", SHARES),
    Published("curtailed energy, centralized in South Australia", 59, "%", SHARES),
    Published("curtailed energy, centralized in Germany", 0, "%", SHARES),
    Published("curtailed energy, curtailment-aware", 97, "%", "Section 5.3"),
    Published("emissions, centralized in California", 11.4, "kg CO2", EMISSIONS),
    Published("emissions, centralized in Texas", 14.5, "kg CO2", EMISSIONS),
    Published("emissions, centralized in South Australia", 12.3, "kg CO2", EMISSIONS),
    Published("emissions, centralized in Germany", 27.1, "kg CO2", "Section 5.3"),
    Published("emissions, curtailment-aware", 1.38, "kg CO2", "Section 5.3"),
    Published("emissions against the dirtiest region's", 5, "%", "Abstract, section 5.3"),
    Published("emissions against the cleanest region's", 12, "%", "Abstract, section 5.3"),
)
"""In the order of the paper."""

REGION_NAMES: Final = {
    "CAISO_NORTH": "California",
    "SPP_TX": "Texas",
    "NEM_SA": "South Australia",
    "DE": "Germany",
}
"""Regions of the trace as the paper calls them."""
