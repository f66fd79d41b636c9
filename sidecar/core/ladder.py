"""Which connection rests how long: the strategy of the idle-limit search. Pure planning, no state.

Theory of operation
===================

A path forgets a connection that rested T seconds. T is unknown, lies anywhere between seconds and days, and a death
shows only when the connection is used; every use restarts the timer. What is known is a bracket: `low`, the longest
rest survived, and `high`, the shortest rest that killed. Nobody can know T before T has passed, so the time spent is
counted in T.

One connection alone (doubling, then bisection: RFC 3489 section 10.2, RFC 5780 section 4.6) needs about eight T,
because every question costs a fresh rest. With K connections resting side by side the questions overlap:

ladder
    All connections always age towards the next untested rungs. A survivor takes the next free rung, so the rungs are
    passed in order while nobody waits for anybody. Rungs are spaced evenly on a logarithmic scale, because an unknown
    T is as likely in one octave as in the next, and one rung stands just above each well-known default, because most
    limits were never changed.

refinement
    When the first connection dies, the others already have staggered ages around the bracket. A test of a rest no
    shorter than such an age costs only the difference. Each test is chosen by what it is expected to tell per second
    of waiting.

The ladder trades two losses against each other: narrow steps need many rests one after the other, wide steps
overshoot T and leave a wide bracket to refine.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, log
from typing import NamedTuple

RESOLUTION = 1.02 / 0.98
"""A bracket with high/low at most this is settled: its middle is within 2 % of the limit."""

TOLERANCE = 0.015
"""How far a limit that was left at its default is taken to lie from it: timers are coarse, measurements late."""

DEFAULT_WEIGHT = 0.7
"""What one well-known default weighs in the prior: as much as all other limits within this many nats (one octave)."""

_MARGIN = 1.02  # a rung stands this far above a default, so that the default's own connection has surely died there
_RATIOS = ((2, 1.85), (4, 1.70), (8, 1.50), (16, 1.30))  # widest step of the ladder, by number of connections


class Use(NamedTuple):
    """Use `connection` once it has rested `rest_seconds`; at once when it already has."""

    connection: int
    rest_seconds: float


@dataclass(frozen=True, slots=True)
class Prior:
    """Where limits are found: spread evenly over the logarithm, with a bump at each well-known default (seconds)."""

    defaults: tuple[float, ...] = ()

    def mass(self, low: float, high: float) -> float:
        """Weight of the limits between `low` and `high` (seconds, 0 < low), in nats of a log-uniform prior."""
        if high <= low:
            return 0.0
        total = log(high / low)
        for default in self.defaults:
            overlap = min(high, default * (1 + TOLERANCE)) - max(low, default * (1 - TOLERANCE))
            if overlap > 0:
                total += DEFAULT_WEIGHT * overlap / (2 * TOLERANCE * default)
        return total


def settled(low: float, high: float) -> bool:
    """Whether the bracket is as narrow as the search wants it."""
    return high <= low * RESOLUTION


def has_sentinel(connections: int) -> bool:
    """Whether one connection of so many is spared as a sentinel.

    It is never used before the first death: a death that can be seen shows on it at exactly T, and used as a witness
    after a silent death it exposes one that had another cause.
    """
    return connections >= 6


def rungs(floor: float, cap: float, connections: int, defaults: Iterable[float] = ()) -> tuple[float, ...]:
    """The ladder: rests to try, ascending, in seconds, from `floor` to `cap`.

    `connections` counts all that may be open at once, the sentinel included. `defaults` are well-known limits; those
    within floor … cap get a rung just above, even if that one lies a little beyond the cap.
    """
    if not 0 < floor < cap:
        raise ValueError(f"floor must be above 0 and below cap, not {floor} and {cap}")
    anchors = sorted({floor, cap, *(default * _MARGIN for default in defaults if floor <= default <= cap)})
    ratio = _widest_step(connections)
    ladder = [anchors[0]]
    for start, end in pairwise(anchors):
        steps = ceil(log(end / start) / log(ratio) - 1e-9)
        ladder += [start * (end / start) ** (step / steps) for step in range(1, steps)]
        ladder.append(end)
    return tuple(ladder)


def next_rung(ladder: Sequence[float], proven: float, taken: Collection[float]) -> float | None:
    """The rest for a connection that starts anew: the lowest rung above `proven` that no other connection aims at.

    `proven` is the longest rest survived (0 if none), `taken` the goals of the others, all in seconds. None when the
    ladder is exhausted: the connection is not needed.
    """
    return next((rung for rung in ladder if rung > proven and rung not in taken), None)


def best_test(low: float, high: float, ages: Mapping[int, float], prior: Prior) -> Use:
    """The next test inside the bracket, all in seconds: most is expected of it per second of waiting.

    `ages` maps each connection that may be used to how long it has rested; it may not be empty. `low` may be 0.
    """
    bottom = max(low, high / 8)  # nothing survived yet: look at the next octaves below, not at all of them
    steps = 48
    grid = [bottom * (high / bottom) ** (step / steps) for step in range(1, steps)]
    whole = prior.mass(bottom, high)
    best, best_score = None, -inf
    for rest in sorted({*grid, *(age for age in ages.values() if bottom < age < high)}):
        ready = [connection for connection, age in ages.items() if age <= rest]
        if not ready:
            continue
        connection = max(ready, key=ages.__getitem__)
        score = _entropy(prior.mass(bottom, rest) / whole) / (rest - ages[connection] + 0.1 * high)
        if score > best_score:
            best, best_score = Use(connection, rest), score
    if best is None:  # every connection is older than the bracket: start the youngest over
        return Use(min(ages, key=ages.__getitem__), 0.0)
    return best


def _entropy(p: float) -> float:
    return 0.0 if not 0 < p < 1 else -(p * log(p) + (1 - p) * log(1 - p))


def _widest_step(connections: int) -> float:
    """The largest ratio between two rungs, interpolated between the numbers of connections that were simulated."""
    if connections <= _RATIOS[0][0]:
        return _RATIOS[0][1]
    for (fewer, wide), (more, narrow) in pairwise(_RATIOS):
        if connections <= more:
            return wide + (narrow - wide) * log(connections / fewer) / log(more / fewer)
    return _RATIOS[-1][1]
