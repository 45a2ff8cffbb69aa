"""Deadlines to plan for before the real one: those plans are starts for its own, so that slack costs nothing."""

LADDER, RUNGS = 1.5, 3
FINE_LADDER, FINE_RUNGS, FINE_SLOTS = 1.1, 5, 500
"""Ratio of one to the next, and how many; the second where all sites together have so few slots at most, whose plans
cost little. By the first, 2 of 40 small cases cost 1.5 and 11 % more with 5 % more time than with less."""


def earlier_deadlines(us: int, deadline: int, cadence: int, slots: int) -> list[int]:
    """The last ones before a deadline, ascending, microseconds.

    They do not depend on it otherwise, so that the plans of two deadlines share their starts.

    Args:
        us: now.
        cadence: of the signal.
        slots: of all sites until the deadline.
    """
    ratio, most = (FINE_LADDER, FINE_RUNGS) if slots <= FINE_SLOTS else (LADDER, RUNGS)
    found, span = [], float(cadence)
    while us + round(span) < deadline:
        found.append(us + round(span))
        span *= ratio
    return found[-most:]
