"""What the pre-ping costs, from turns on the held pool taken with and without it.

A turn is what an application does at the very least: check out, run one query in a transaction, check in. Its time is
the yardstick because a checkout alone, without a ping, sends nothing at all: measured against that, every ping would
cost everything. Turns with and without ping alternate on the same connections, so whatever slows the path slows both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, sqrt
from typing import overload

PING_ROUND_TRIPS = 3
"""BEGIN, an empty query, ROLLBACK: SQLAlchemy's ping over asyncpg (one more the first time on a connection)."""

PING_ROUND_TRIPS_AUTOCOMMIT = 1
"""The empty query alone (one more the first time on a connection)."""

PING_ROUND_TRIPS_UNCACHED = 4
"""With both statement caches at 0, as a transaction pooler needs it, the empty query is parsed anew every time."""

PING_ROUND_TRIPS_UNCACHED_AUTOCOMMIT = 2
"""Parse, and execute; nothing around it."""

_WINDOW = 720
"""Samples kept of each kind: an hour of one every five seconds. Older ones say little about the path of today."""

_DEVIATIONS = 2.24
"""Standard deviations of the binomial on either side of the middle: such an interval misses its median in at most 2.5 %
of all cases, so that two of them bound a ratio in at least 95 %."""

_LEAST_FOR_P99 = 100
"""Samples below which no 99th percentile is told: it would be the maximum under another name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PingCost:
    """What one pre-ping takes, and its share of a turn. A number not yet known is None.

    `overhead_ratio` is the part of a pinged turn that the ping causes, from 0 to below 1; at least 95 % of the time the
    true one lies between `overhead_low` and `overhead_high`.
    """

    p50_seconds: float
    p99_seconds: float | None  # from 100 pings on
    overhead_ratio: float | None
    overhead_low: float | None
    overhead_high: float | None
    pings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How long the latest of something took."""

    count: int
    p50_seconds: float
    p99_seconds: float | None  # from 100 on
    max_seconds: float


class PingLedger:
    """The latest pings, checkouts and turns of one target."""

    def __init__(self) -> None:
        self._pings: deque[float] = deque(maxlen=_WINDOW)
        self._turns: dict[bool, deque[float]] = {True: deque(maxlen=_WINDOW), False: deque(maxlen=_WINDOW)}
        self._checkouts: dict[bool, deque[float]] = {True: deque(maxlen=_WINDOW), False: deque(maxlen=_WINDOW)}

    def add_ping(self, seconds: float) -> None:
        """A ping that was answered."""
        self._pings.append(seconds)

    def add_turn(self, seconds: float, *, pre_ping: bool) -> None:
        """A whole turn on a connection that was open before it: connecting would drown the ping."""
        self._turns[pre_ping].append(seconds)

    def add_checkout(self, seconds: float, *, pre_ping: bool) -> None:
        """Only the part of a turn that waits for the connection."""
        self._checkouts[pre_ping].append(seconds)

    def checkouts(self, *, pre_ping: bool) -> Spread | None:
        """How long checkouts with or without a ping took; None before the first."""
        ordered = sorted(self._checkouts[pre_ping])
        if not ordered:
            return None
        return Spread(
            count=len(ordered),
            p50_seconds=quantile(ordered, 0.5),
            p99_seconds=quantile(ordered, 0.99) if len(ordered) >= _LEAST_FOR_P99 else None,
            max_seconds=ordered[-1],
        )

    def cost(self) -> PingCost | None:
        """The cost as the window shows it; None before the first ping."""
        if not self._pings:
            return None
        pings = sorted(self._pings)
        ratio, low, high = _overhead(sorted(self._turns[True]), sorted(self._turns[False]))
        return PingCost(
            p50_seconds=quantile(pings, 0.5),
            p99_seconds=quantile(pings, 0.99) if len(pings) >= _LEAST_FOR_P99 else None,
            overhead_ratio=ratio,
            overhead_low=low,
            overhead_high=high,
            pings=len(pings),
        )


@overload
def milliseconds(seconds: float) -> float: ...


@overload
def milliseconds(seconds: None) -> None: ...


def milliseconds(seconds: float | None) -> float | None:
    """As it is shown: to the microsecond, and null where it is not known."""
    return None if seconds is None else round(seconds * 1000, 3)


def round_trips(*, parsed_anew: bool) -> tuple[int, int]:
    """Of one ping, in a transaction and under AUTOCOMMIT. `parsed_anew` where no statement is cached."""
    if parsed_anew:
        return PING_ROUND_TRIPS_UNCACHED, PING_ROUND_TRIPS_UNCACHED_AUTOCOMMIT
    return PING_ROUND_TRIPS, PING_ROUND_TRIPS_AUTOCOMMIT


def quantile(ordered: Sequence[float], q: float) -> float:
    """Of samples in ascending order the smallest that a share `q` (above 0, at most 1) of them does not exceed."""
    return ordered[ceil(q * len(ordered)) - 1]


def median_interval(ordered: Sequence[float]) -> tuple[float, float] | None:
    """Bounds that miss the true median in at most 2.5 % of all cases, whatever the distribution; None below 10 samples.

    The number of samples below the median is binomial (n, 1/2), here by its normal approximation, rounded outwards.
    """
    n = len(ordered)
    if n < 10:
        return None
    reach = _DEVIATIONS * sqrt(n) / 2
    return ordered[max(0, floor(n / 2 - reach) - 1)], ordered[min(n - 1, ceil(n / 2 + reach))]


def _overhead(pinged: Sequence[float], bare: Sequence[float]) -> tuple[float | None, float | None, float | None]:
    with_ping, without = median_interval(pinged), median_interval(bare)
    if with_ping is None or without is None:
        return None, None, None
    # Chance can make the pinged turns the faster ones; no ping takes less than no time.
    return (
        max(0.0, 1 - quantile(bare, 0.5) / quantile(pinged, 0.5)),
        max(0.0, 1 - without[1] / with_ping[0]),
        max(0.0, 1 - without[0] / with_ping[1]),
    )
