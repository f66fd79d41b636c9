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
    All connections always age towards the next untested rungs, the oldest towards the lowest. A survivor takes the next
    free rung, so the rungs are passed in order while nobody waits for anybody. One rung stands just above each
    well-known default, because most limits were never changed. Between them the rungs are spread over a logarithmic
    scale, because an unknown T is as likely in one octave as in the next.

sentinel
    One connection is spared: not used, it shows a death that can be seen at exactly T. It costs a climber, the more so
    the further apart the defaults are, and the further up, the less remains for it to show. So it rests until
    `SPARED_UNTIL_SECONDS` are survived, and then climbs with the others: as the oldest it reaches the next rung first.

refinement
    When the first connection dies, the others already have staggered ages around the bracket. A test of a rest no
    shorter than such an age costs only the difference. Which rest to test next, on which connection, is computed: of
    all orders in which the connections at hand may be spent, the one that is expected to settle the bracket soonest.

The ladder trades two losses against each other: narrow steps need many rests one after the other, wide steps
overshoot T and leave a wide bracket to refine. A rung is reached the sooner, the longer ago its connection was opened,
so narrow steps before a default delay the default. Hence two defaults rather close together have no rung between them.
For as many connections as most will use the rungs between the defaults were found by search (`bench/ladder.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, inf, log, sqrt
from typing import NamedTuple

RESOLUTION_RATIO = 1.02 / 0.98
"""A bracket with high/low at most this is settled: its middle is within 2 % of the limit."""

TOLERANCE_SHARE = 0.015
"""How far a limit that was left at its default is taken to lie from it: timers are coarse, measurements late."""

DEFAULT_WEIGHT_NATS = 0.7
"""What one well-known default weighs in the prior: as much as all other limits within this many nats (one octave)."""

SAME_REST_RATIO = 1.0001
"""Rests closer together than this ratio are not told apart."""

SPARED_UNTIL_SECONDS = 1200.0
"""The sentinel climbs once so many seconds are survived: most limits lie below the first rung beyond."""

_ABOVE_DEFAULT_RATIO = 1 + TOLERANCE_SHARE + 0.0005
"""A rung stands this far above a default: just where the default itself has died."""

_MERGED_RATIO = 1.05
"""Two defaults closer together share the upper one's rung: a bracket this narrow is settled anyway."""

_WIDEST_STEP_RATIOS = ((2, 1.85), (4, 1.8), (8, 1.5), (16, 1.3))
"""The widest step between two rungs, by number of connections; simulated (`bench/discovery.py`)."""

_LEFT_OPEN_RATIO = 1.75
"""Between two defaults no further apart than this no rung is added to even steps."""

_RUNGS_BETWEEN_SECONDS: Mapping[int, tuple[float, ...]] = {
    8: (7.2, 9.5, 12.9, 27.9, 38.7, 81.3, 119.8, 176.3, 2617.0, 4731.0, 5980.0, 11_900.0, 17_600.0, 24_400.0),
}
"""The rungs between the well-known defaults, by number of connections; found by search (`bench/ladder.py`)."""

_UNFIT_STEP_RATIO = 2.2
"""Wider than any step among those: there the defaults are others, or the range is, and steps are even."""

_FRESH_COST_SHARE = 0.9
"""Of its lower end: what waiting a bracket costs that only connections opened anew can settle."""

_MOST_CONNECTIONS_PLANNED = 5
"""Connections that enter a plan: more would only cost time to think."""

_MOST_CELLS_PLANNED = 14
"""Cells of a bracket that enter a plan: the same."""

_CELL_SLACK_RATIO = 1.001
"""Cells are planned narrower by this: a death noticed late must not leave a bracket just too wide."""


class Choice(NamedTuple):
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
            overlap = min(high, default * (1 + TOLERANCE_SHARE)) - max(low, default * (1 - TOLERANCE_SHARE))
            if overlap > 0:
                total += DEFAULT_WEIGHT_NATS * overlap / (2 * TOLERANCE_SHARE * default)
        return total


def settled(low: float, high: float) -> bool:
    """Whether the bracket is as narrow as the search wants it."""
    return high <= low * RESOLUTION_RATIO


def spares_sentinel(connections: int, low: float) -> bool:
    """Whether one connection of so many is spared as a sentinel once `low` seconds are survived.

    A death that can be seen shows on it at exactly T, and used as a witness after a silent death it exposes one that
    had another cause.
    """
    return connections >= 6 and low < SPARED_UNTIL_SECONDS


def spared_rest(ladder: Sequence[float]) -> float:
    """What the sentinel rests at most on this ladder until it climbs, in seconds.

    It is spared until a climber has survived the first rung from there on, and takes the next then. By that time it may
    have rested for longer itself: the climber began later.
    """
    beyond = [rung for rung in ladder if rung >= SPARED_UNTIL_SECONDS][:3]
    return beyond[-1] if beyond else ladder[-1]


def rungs(
    floor: float,
    cap: float,
    connections: int,
    defaults: Iterable[float] = (),
    between: Mapping[int, tuple[float, ...]] | None = None,
) -> tuple[float, ...]:
    """The ladder: rests to try, ascending, in seconds, from `floor` to `cap`.

    `connections` counts all that may be open at once, the sentinel included. `defaults` are well-known limits; those
    within floor … cap get a rung just above, even if that one lies a little beyond the cap. `between` are the rungs to
    put between them, by number of connections; where it has none, steps are even.
    """
    if not 0 < floor < cap:
        raise ValueError(f"floor must be above 0 and below cap, not {floor} and {cap}")
    anchors = [floor]
    for rung in sorted({cap, *(default * _ABOVE_DEFAULT_RATIO for default in defaults if floor <= default <= cap)}):
        if len(anchors) > 1 and rung <= anchors[-1] * _MERGED_RATIO:
            anchors.pop()
        if rung > floor:
            anchors.append(rung)
    found = (_RUNGS_BETWEEN_SECONDS if between is None else between).get(connections, ())
    widest, step = _UNFIT_STEP_RATIO if found else _LEFT_OPEN_RATIO, _widest_step(connections)
    ladder = [floor]
    for start, end in pairwise(anchors):
        inside = [rung for rung in found if start * _MERGED_RATIO < rung < end / _MERGED_RATIO]
        if max(high / low for low, high in pairwise([start, *inside, end])) > widest:
            steps = ceil(log(end / start) / log(step) - 1e-9)
            inside = [start * (end / start) ** (n / steps) for n in range(1, steps)]
        ladder += [*inside, end]
    return tuple(ladder)


def best_test(low: float, high: float, ages: Mapping[int, float], prior: Prior) -> Choice:
    """The next test inside the bracket, all in seconds: the first of the plan that is expected to settle it soonest.

    `ages` maps each connection that may be used to how long it has rested; it may not be empty. `low` may be 0.
    """
    bottom = max(low, high / 8)  # nothing survived yet: look at the next octaves below, not at all of them
    inside = sorted(((age, connection) for connection, age in ages.items() if age < high), reverse=True)
    plan = _Plan(bottom, high, [age for age, _ in inside[:_MOST_CONNECTIONS_PLANNED]], prior)
    first = plan.first()
    if first is None:  # every connection is older than the bracket: start the youngest over
        return Choice(min(ages, key=ages.__getitem__), 0.0)
    rest, n = first
    return Choice(inside[n][1], rest)


class _Plan:
    """All orders in which connections may be spent on a bracket, by dynamic programming.

    A state is the bracket that is left, the connections not used yet and the time passed; its value the waiting still
    expected, each limit weighed by what the prior gives it and by its reciprocal, because time counts in units of the
    limit. Of the connections young enough for a test the oldest gets there first, and is of no use for shorter rests.
    """

    def __init__(self, low: float, high: float, ages: Sequence[float], prior: Prior) -> None:
        self._ages = ages  # oldest first
        self._cell = max(RESOLUTION_RATIO / _CELL_SLACK_RATIO, (high / low) ** (1 / _MOST_CELLS_PLANNED))
        self._grid = self._points(low, high, prior)
        self._weight = [0.0]
        for start, end in pairwise(self._grid):
            self._weight.append(self._weight[-1] + prior.mass(start, end) / sqrt(start * end))
        self._values: dict[tuple[int, int, int, float], float] = {}

    def first(self) -> tuple[float, int] | None:
        """The rest to test first, and the place of its connection among the ages; None when there is none."""
        best = self._best(0, len(self._grid) - 1, (1 << len(self._ages)) - 1, 0.0)[1]
        return None if best is None else (self._grid[best[0]], best[1])

    def _points(self, low: float, high: float, prior: Prior) -> list[float]:
        """The rests worth testing: whole cells, the edges of defaults, what costs no waiting."""
        cells = range(1, ceil(log(high / low) / log(self._cell)))
        points = {low * self._cell**n for n in cells} | {sqrt(low * high), *self._ages}
        for default in prior.defaults:
            points |= {default * (2 - _ABOVE_DEFAULT_RATIO), default * _ABOVE_DEFAULT_RATIO}
        grid = [low]
        for point in sorted(points):
            if grid[-1] * SAME_REST_RATIO < point < high / SAME_REST_RATIO:
                grid.append(point)
        return [*grid, high]

    def _best(self, lo: int, hi: int, unused: int, passed: float) -> tuple[float, tuple[int, int] | None]:
        grid, ages = self._grid, self._ages
        weight = self._weight[hi] - self._weight[lo]
        best, choice = inf, None
        ready = [(age + passed, n) for n, age in enumerate(ages) if unused >> n & 1]
        middle = (lo + hi) // 2
        # The middle first: it is the likeliest choice, and a good one rules out others early.
        for at in sorted(range(lo + 1, hi), key=lambda at: abs(at - middle)):
            rest = grid[at]
            age, n = next(((age, n) for age, n in ready if age <= rest * SAME_REST_RATIO), (inf, -1))
            if n < 0:
                continue
            wait = max(0.0, rest - age)
            value = wait * weight
            if value >= best:
                continue
            left, then = unused & ~(1 << n), passed + wait
            value += self._value(lo, at, left, then)
            if value < best:
                value += self._value(at, hi, left, then)
            if value < best:
                best, choice = value, (at, n)
        return best, choice

    def _value(self, lo: int, hi: int, unused: int, passed: float) -> float:
        if self._grid[hi] <= self._grid[lo] * self._cell * SAME_REST_RATIO:
            return 0.0
        state = (lo, hi, unused, passed)
        value = self._values.get(state)
        if value is None:
            fresh = _FRESH_COST_SHARE * self._grid[lo] * (self._weight[hi] - self._weight[lo])
            value = self._values[state] = min(fresh, self._best(lo, hi, unused, passed)[0])
        return value


def _widest_step(connections: int) -> float:
    """The largest ratio between two rungs, interpolated between the numbers of connections that were simulated."""
    if connections <= _WIDEST_STEP_RATIOS[0][0]:
        return _WIDEST_STEP_RATIOS[0][1]
    for (fewer, wide), (more, narrow) in pairwise(_WIDEST_STEP_RATIOS):
        if connections <= more:
            return wide + (narrow - wide) * log(connections / fewer) / log(more / fewer)
    return _WIDEST_STEP_RATIOS[-1][1]
