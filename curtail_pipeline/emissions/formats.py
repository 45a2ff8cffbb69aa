"""Amounts as text, for the report and the model card."""

import math


def mass(grams: float | None) -> str:
    """`1.34 kg` or `217 g`; a dash for an unknown mass."""
    if grams is None:
        return "–"
    if abs(grams) >= 1000:
        return f"{grams / 1000:.3g} kg"
    return f"{grams:.3g} g"


def percent(share: float | None) -> str:
    """`12.1 %`; a dash for an unknown share."""
    if share is None or not math.isfinite(share):
        return "–"
    if 0.9995 <= share < 1:
        return "> 99.9 %"
    return f"{share * 100:.1f} %"


def short(count: float) -> str:
    """`12.4 G` for a count."""
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= limit:
            return f"{count / limit:.3g} {unit}"
    return f"{count:g}"
