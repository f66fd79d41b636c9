"""Bounds, rounded away from the limit that lies between them: no digit claims more than was seen."""

from __future__ import annotations

from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

_MILLISECONDS, _TENTHS = Decimal("0.001"), Decimal("0.1")
"""Units, in seconds."""


def below(seconds: float) -> float:
    """A lower bound in whole milliseconds."""
    return float(_rounded(seconds, _MILLISECONDS, ROUND_FLOOR))


def above(seconds: float) -> float:
    """An upper bound in whole milliseconds."""
    return float(_rounded(seconds, _MILLISECONDS, ROUND_CEILING))


def at_least(seconds: float) -> str:
    """A lower bound as people read it: in tenths of a second, below one second in milliseconds."""
    return _in_words(seconds, ROUND_FLOOR)


def at_most(seconds: float) -> str:
    """An upper bound, likewise."""
    return _in_words(seconds, ROUND_CEILING)


def _in_words(seconds: float, rounding: str) -> str:
    if seconds >= 1:
        return f"{_rounded(seconds, _TENTHS, rounding):f}"
    return f"{_rounded(seconds, _MILLISECONDS, rounding).normalize():f}"


def _rounded(seconds: float, unit: Decimal, rounding: str) -> Decimal:
    # As it is written, not as it is stored: 1.1 is a little more in binary, and its upper bound is 1.1 all the same.
    return Decimal(repr(seconds)).quantize(unit, rounding)
