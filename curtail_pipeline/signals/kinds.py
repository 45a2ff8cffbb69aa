"""Is what a file holds the kind of signal that it is taken for? Names and sizes of values that say otherwise.

A price of 60 read as gCO2/kWh is below every threshold, so that windows are open all the time; the same holds for an
average intensity of a clean grid. Both are refused where nobody declared the kind.
"""

import re
from collections.abc import Sequence
from typing import Final

import polars as pl

from curtail_pipeline.errors import TraceError
from curtail_pipeline.signals.period_columns import is_clock

_PRICE: Final = {
    *("rrp", "lmp", "hoep", "price", "prices", "spot", "mcp", "smp", "prc", "tariff", "cost", "preis", "prix"),
    *("precio", "prezzo", "eur", "euro", "usd", "aud", "gbp", "cad", "nzd", "nok", "sek", "dkk", "pln", "chf", "jpy"),
    *("dollar", "dollars", "dayahead", "mcpc", "mcpe", "pvpc", "pun", "omie", "omel", "epex", "dam", "rtm", "charge"),
    *("preço", "preco", "prijs", "prijzen", "hinta", "cena", "ceny", "pris", "fiyat"),
}
_PRICE_ENDS: Final = ("price", "preis", "prices", "preise", "lmp", "lbmp", "pris", "prijs")
_CURTAILED: Final = re.compile(
    r"(?:^|_)(?:curtail(?:ed|ment|ments|ing)?|spill(?:ed|age|s)?|uigf|dispatch_?down|abregelung|abgeregelt|"
    r"[eé]cr[eê]tement|vertimientos?)(?:_|$)"
)
_AVERAGE: Final = {
    *("avg", "average", "averaged", "mean", "aoer", "aer", "aef", "lifecycle", "lca", "durchschnitt", "mittelwert"),
    *("moyenne", "promedio", "media"),
}
_MARGINAL: Final = {"marginal", "moer", "mer", "mef", "smer", "lmer"}
_FORECAST: Final = {"forecast", "forecasted", "fcst", "predicted", "prediction", "prognose", "prevision"}
_OTHER: Final = {
    *("percent", "percentage", "perc", "pct", "share", "ratio", "renewable", "renewables", "cfe", "lcp", "version"),
    *("frequency", "temperature", "temp", "humidity", "irradiance", "load", "demand", "generation", "consumption"),
    *("capacity", "production", "rank", "count", "latitude", "longitude", "population", "percentile", "health"),
    *("damage", "damages", "speed", "solar", "wind", "gas", "coal", "nuclear", "biomass"),
    *("std", "stdev", "stddev", "stderr", "deviation", "variance", "uncertainty", "confidence", "sigma", "samples"),
    *("duration", "elevation", "altitude", "lat", "lng", "distance"),
}
"""What is published beside intensities and is none."""
_ELECTRICITY_MAPS: Final = re.compile(r"carbon[ _]?intensity.*\((direct|life ?cycle)\)", re.IGNORECASE)
_PERIOD: Final = re.compile(
    r"(hour|hr|he|hour_?ending|hourending|ending_?hour|opr_?hr|opr_?hour|delivery_?hour|delivery_?interval|interval|"
    r"opr_?interval|period|settlement_?period|trading_?period|periodid|sp|mtu|quarter)(_?(no|nr|num|number|of_day))?"
)
_PART: Final = re.compile(
    r"year|yr|month|day|week|week_?day|dow|doy|day_?of_?(week|month|year)|(is_?)?(holiday|weekend)|minutes?|seconds?|"
    r"index|idx|id|row|row_?(id|no|nr|number)|(zone|region|area|p?node|location)_?id|ptid|unnamed(_?\d+)?|"
    r"(is_?)?dst(_?flag)?|(utc|tz|gmt)_?offset|offset|fold|season|"
)
"""Parts of a date, counters of rows and remarks about the clock."""
_VALID: Final = re.compile(
    r"(is_?)?(in)?valid(ity)?(_?(flag|code))?|(is_?)?(bad|good|ok)(_?(data|flag))?|qc(_?(flag|code))?"
)
_COUNTRY: Final = re.compile("[A-Z]{2}")
"""HR is Croatia, ID Indonesia and SP a part of Brazil, unless the values count hours."""
_STAMP: Final = (
    r"^\s*(?:\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}(?:\D.*)?|[A-Za-z]{3,9}\.? \d{1,2},? \d{4}(?:\D.*)?"
    r"|\d{1,2}[- ][A-Za-z]{3,9}[- ]\d{2,4}(?:\D.*)?|\d{1,2}:\d{2}(?::\d{2})?(?: ?[AaPp]\.?[Mm]\.?)?)\s*$"
)
_MOST_COUNTED: Final = 50
_HEAD: Final = 20
_TOKENS: Final = re.compile(r"[^\W\d_]+")
_SMALL_P95: Final = 150.0
"""g/kWh. The 95th percentile of real marginal intensities is 450 to 890, because the next kWh of a grid comes from a
fossil unit most of the time. The largest value says less: a price has spikes."""
OFTEN: Final = 0.8
_INTENSITY: Final = 300.0
_ENOUGH_S: Final = 12 * 3600.0
"""A grid can be without a fossil unit for half a day."""


def is_part_of_times(name: str) -> bool:
    """Whether a column counts hours, periods or minutes, by its name, and so belongs to the stamps."""
    return _PERIOD.fullmatch(_plain(name)) is not None or re.fullmatch("minutes?", _plain(name)) is not None


def signals_among(file: str, time: str, columns: pl.DataFrame) -> list[str]:
    """The columns that can hold signals, of those that nobody named.

    Raises:
        TraceError: there is none, or one of them says by its name which values count.
    """
    found = [name for name in columns.columns if not is_no_signal(name, columns[name])]
    if not found:
        raise TraceError(
            f"{file}: has no value column beside {time!r}; add one per region, or name the column of times in "
            "traces.time_column"
        )
    validity = next((name for name in found if _VALID.fullmatch(_plain(name))), None)
    if validity is not None:
        raise TraceError(
            f"{file}: column {validity!r} says by its name which values count, and would be read as a region; choose "
            f"the rows that do with traces.where, e.g. {{{validity}: 1}}, or name the columns to read in traces.columns"
        )
    return found


def is_no_signal(name: str, values: pl.Series) -> bool:
    """Whether a column holds times, counts periods or rows, or says something about the time, and is never a region.

    Args:
        values: of a name that may be a country's as well, which they tell.
    """
    plain = _plain(name)
    if is_clock(values) or holds_stamps(values):
        return True
    if _PERIOD.fullmatch(plain) is None and _PART.fullmatch(plain) is None:
        return False
    if _COUNTRY.fullmatch(name) is None:
        return True
    numbers = values.cast(pl.String, strict=False).cast(pl.Float64, strict=False).drop_nulls()
    return bool(((numbers == numbers.round()) & numbers.is_between(0, _MOST_COUNTED)).all())


def holds_stamps(values: pl.Series) -> bool:
    """Whether values are dates or times of day, such as the ends of intervals beside their begins."""
    if values.dtype != pl.String:
        return values.dtype.is_temporal() and values.dtype != pl.Duration
    known = values.drop_nulls()
    return len(known) > 0 and all(bool(part.str.contains(_STAMP).all()) for part in (known.head(_HEAD), known))


def _plain(name: str) -> str:
    return re.sub(r"(?:[^\w$€£%]|_)+", "_", _split(name).lower()).strip("_")


def require_believable_names(file: str, columns: Sequence[str]) -> None:
    """For columns whose kind nobody declared.

    Raises:
        TraceError: one of them holds a price, curtailed power or an average intensity by its name.
    """
    for name in columns:
        tokens = _tokens(name)
        if _CURTAILED.search("_".join(tokens)):
            raise TraceError(
                f"{file}: column {name!r} holds curtailed power by its name, and would be read as gCO2/kWh; declare it "
                "with --kind curtailed_power (traces.kind: curtailed_power), or --kind marginal_intensity if it is one"
            )
        if (
            not _PRICE.isdisjoint([*tokens, "".join(tokens)])
            or any(token.endswith(_PRICE_ENDS) for token in tokens)
            or any(sign in name for sign in "$€£")
        ):
            raise TraceError(
                f"{file}: column {name!r} holds a price by its name, and would be read as gCO2/kWh; declare it with "
                "--kind price (traces.kind: price), or --kind marginal_intensity if it is one"
            )
        if (not _AVERAGE.isdisjoint(tokens) and _MARGINAL.isdisjoint(tokens)) or _ELECTRICITY_MAPS.search(name):
            raise TraceError(
                f"{file}: column {name!r} holds an average intensity by its name, which cannot define a curtailment "
                "window; name the columns to read in traces.columns, with kind: average_intensity for accounting, or "
                "declare --kind marginal_intensity if it is one"
            )


def require_intensity_names(file: str, columns: Sequence[str]) -> None:
    """For columns that are read as the intensities of regions because nobody named or declared them.

    Raises:
        TraceError: one of them is a forecast or something else by its name.
    """
    for name in columns:
        tokens = set(_tokens(name))
        what = "holds a forecast" if tokens & _FORECAST else "holds no intensity" if tokens & _OTHER else ""
        if what or "%" in name:
            raise TraceError(
                f"{file}: column {name!r} {what or 'holds no intensity'} by its name, and would be read as a region's "
                "intensity; name the columns to read in traces.columns (forecasts in traces.forecast)"
            )


def is_intensity(high: float) -> bool:
    """Whether values [g/kWh] are a marginal intensity's, by their quantile `OFTEN`: prices are rarely so high."""
    return high >= _INTENSITY


def require_believable_values(file: str, region: str, values: pl.Series, cadence_s: float) -> None:
    """For a signal [g/kWh] that is read as a marginal intensity because nobody declared its kind.

    Raises:
        TraceError: the values are those of a price or of something else.
    """
    known = values.drop_nulls()
    others = known.filter(known > 0)
    if len(others) * cadence_s < _ENOUGH_S or len(others) < len(known) / 2:
        return
    high, largest = float(others.quantile(0.95, "lower") or 0.0), float(others.max() or 0.0)  # type: ignore[arg-type]
    if largest >= 2.0 and high < _SMALL_P95:
        most = f"never exceeds {largest:g}" if largest < _INTENSITY else f"exceeds {high:g} in 1 of 20 values only"
        raise TraceError(
            f"{file}: {region!r} {most}, which as gCO2/kWh would be a grid without a fossil unit at the margin; "
            "declare what it holds with --kind price or --kind curtailed_power (traces.kind), or --kind "
            "marginal_intensity if the region really is that clean"
        )


def _tokens(name: str) -> list[str]:
    return [token.lower() for token in _TOKENS.findall(_split(name))]


def _split(name: str) -> str:
    """CamelCase as words: `SettlementPointPrice` -> `Settlement Point Price`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
