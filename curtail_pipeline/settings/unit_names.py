"""Units as people write them: in the name of a column, in a column of units, and in the settings."""

import re
from dataclasses import dataclass
from typing import Final

_ENERGY: Final = r"(?P<per>kwh|mwh|gwh|mj|gj|tj)(?:rs?)?(?![a-z])"
_TIME: Final = r"(?:h|hrs?|hours?)(?![a-z])"
_CO2: Final = r"[ _]*(?:of[ _]*)?(?:co[ _]?2)?[ _-]*(?:eq|e)?[ _.]*"
_MASS: Final = re.compile(
    rf"(?<![a-z])(?:(?P<mass>g|grams?|kg|t|tonnes?|tons?|mt|lbs?|pounds?){_CO2}(?:/|per)"
    rf"|(?P<word>kg|lbs?|pounds?|tonnes?){_CO2}(?<=[ _.2e]))[ _.]*(?:{_ENERGY}|{_TIME})"
)
_MONEY: Final = re.compile(rf"(?:[€$£¥円]|(?<![a-z])[a-z]{{1,3}}|cents?|euros?)[ _.]*(?:/|per)[ _.]*{_ENERGY}")
_POWER: Final = re.compile(r"(?<![a-z/])(?P<unit>kw|mw|gw|kwh|mwh|gwh)(?![a-z])")
_INTENSITIES: Final = {
    ("g", "kwh"): "g/kWh",
    ("kg", "mwh"): "g/kWh",
    ("t", "gwh"): "g/kWh",
    ("kg", "kwh"): "kg/kWh",
    ("t", "mwh"): "kg/kWh",
    ("lb", "mwh"): "lb/MWh",
}
_SHORT: Final = {
    "gram": "g",
    "grams": "g",
    "tonne": "t",
    "tonnes": "t",
    "mt": "t",
    "lbs": "lb",
    "pound": "lb",
    "pounds": "lb",
}
_INTENSITY_KINDS: Final = frozenset({"marginal_intensity", "average_intensity"})


@dataclass(frozen=True)
class SaidUnit:
    """A unit in a name."""

    text: str
    """As the name writes it."""
    unit: str | None
    """None where it is none that values are read in."""
    kinds: frozenset[str]
    """What it measures."""


def as_spelled(unit: object) -> object:
    """The product's name of a unit that is written otherwise, e.g. g/kWh of `kgCO2/MWh`; anything else as it is."""
    if not isinstance(unit, str):
        return unit
    said = said_unit(unit)
    return said.unit if said is not None and said.unit is not None and said.text == unit.strip() else unit


def said_unit(name: str) -> SaidUnit | None:
    """The unit in a column's name or in a column of units, e.g. lb/MWh of `MOER [lbs CO2/MWh]`; None without one."""
    plain = name.replace("₂", "2").lower()
    if (found := _MASS.search(plain)) is not None:
        mass = found["mass"] or found["word"]
        unit = _INTENSITIES.get((_SHORT.get(mass, mass), found["per"]))
        return SaidUnit(name[slice(*found.span())], unit, _INTENSITY_KINDS)
    if (found := _MONEY.search(plain)) is not None:
        money = "currency/MWh" if found["per"] == "mwh" else None
        return SaidUnit(name[slice(*found.span())], money, frozenset({"price"}))
    if (found := _POWER.search(plain)) is not None:
        power = "MW" if found["unit"] == "mw" else None
        return SaidUnit(name[slice(*found.span())], power, frozenset({"curtailed_power"}))
    return None
