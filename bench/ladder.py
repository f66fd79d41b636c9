"""Where the rungs between the well-known defaults stand best: the search that found those of `sidecar/core/ladder.py`.

    python -m bench.ladder [--minutes M] [--seed S] [--spared SECONDS] [--connections K] [--rungs R,R,...]

Simulated annealing over the rungs of one ladder. A ladder is judged exactly: the climb is the same for all limits until
one strikes, and from there the refinement, planned by the very code of the service (`best_test`), is a tree with one
leaf for each bracket that can come out. So the time until the bracket is within 2 % follows for each limit, without
chance. Prints each better ladder and its times, median / 95th percentile in units of the limit: for *anything*, limits
spread evenly over the logarithm from 20 s to 8 h; for *defaults*, those within 1.5 % of one; and *seen*, when a death
that can be seen shows. Without minutes it judges the ladder in use, and those that are best where one of the three is
not cared for.
"""

from __future__ import annotations

import argparse
import random
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import exp, log
from unittest import mock

from bench.discovery import CAP, DEFAULTS, FLOOR, LONGEST, SHORTEST, TOLERANCE, WITHIN_RANGE, spread
from sidecar.core.idle import ladder
from sidecar.core.idle.ladder import Prior, best_test, rungs, settled, spares_sentinel
from sidecar.core.idle.machine import OPENING_SPACING_SECONDS

PRIOR = Prior(DEFAULTS)
# What is wanted of median and 95th percentile, and what a percent too much is worth.
GOALS = {"anything": (1.445, 1.65), "defaults": (1.122, 1.24), "seen": (1.00, 1.10)}
WEIGHTS = {"anything": (6.0, 3.0), "defaults": (8.0, 2.0), "seen": (0.5, 0.5)}
POINTS = 2000  # limits to judge by
HOT, COLD = 0.005, 0.0002  # how much worse a ladder may be to be gone on from, at first and at last

OTHERS = {  # found with the weight of one kind 0: rungs, and until what is survived the sentinel is spared
    "defaults not cared for": (
        (7.3, 10.4, 12.2, 26.6, 37.8, 76.0, 104, 146, 195, 447, 740, 2090, 2740, 5020, 6430, 9730, 12_300, 16_100,
         20_600, 25_200),
        ladder.SPARED_UNTIL_SECONDS,
    ),
    "visible deaths not cared for": (
        (7.46, 10.8, 12.4, 26.7, 37.5, 78.2, 110.5, 156.1, 466, 1450, 2302, 2812, 4896, 6323, 10_150, 12_500, 16_150,
         21_020, 26_300),
        0.0,
    ),
}  # fmt: skip


def _limits() -> dict[str, list[float]]:
    """Limits to judge by, ascending, of each kind."""
    even = [SHORTEST * (LONGEST / SHORTEST) ** ((n + 0.5) / POINTS) for n in range(POINTS)]
    shares = [1 - TOLERANCE + 2 * TOLERANCE * (n + 0.5) / 100 for n in range(100)]
    near = [default * share for default in WITHIN_RANGE for share in shares]
    return {"anything": even, "defaults": sorted(near)}


LIMITS = _limits()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Median and 95th percentile of the time to ±2 %, in units of the limit, for each kind of limit."""

    times: Mapping[str, tuple[float, float]]

    @property
    def cost(self) -> float:
        """What the goals are missed by, weighed; and a trifle for what could still be better."""
        cost = 0.0
        for kind, seen in self.times.items():
            for value, goal, weight in zip(seen, GOALS[kind], WEIGHTS[kind], strict=True):
                cost += weight * max(0.0, value / goal - 1) + 0.02 * weight * value / goal
        return cost

    def __str__(self) -> str:
        return ", ".join(f"{kind} {median:.3f} / {tail:.3f}" for kind, (median, tail) in self.times.items())


def judge(steps: Sequence[float], connections: int, spared_until: float) -> Verdict:
    """The times of a ladder."""
    ends, whens = [], []  # of the brackets that come out, ascending: the upper end, and when
    oldest = []  # of each rung: since when some connection has rested that is not used before
    low = 0.0
    with mock.patch.object(ladder, "SPARED_UNTIL_SECONDS", spared_until):
        climbed = list(_climb(steps, connections))
    for rung, now, since, asked in climbed:
        # Who dies is replaced. Whoever rested longer is the sentinel: it is asked as a witness, and dies, too.
        ages = (0.0 if n == asked or now - start > rung else now - start for n, start in enumerate(since))
        for end, after in _refine(low, rung, tuple(ages)):
            ends.append(end)
            whens.append(now + after)
        oldest.append(min(since))
        low = rung
    found = {
        kind: spread(whens[bisect_left(ends, limit)] / limit for limit in limits) for kind, limits in LIMITS.items()
    }
    seen = spread((oldest[bisect_left(steps, limit)] + limit) / limit for limit in LIMITS["anything"])
    return Verdict({**found, "seen": seen})


def _climb(steps: Sequence[float], connections: int) -> Iterator[tuple[float, float, list[float], int]]:
    """Of each rung in range: when it is reached, since when the connections have rested then, and which is used."""
    since = [n * OPENING_SPACING_SECONDS for n in range(connections)]
    low = 0.0
    for rung in steps:
        if low > LONGEST:
            break
        spares = spares_sentinel(connections, low)
        asked = min(range(spares, connections), key=since.__getitem__)  # the first one opened is the sentinel
        now = since[asked] + rung
        yield rung, now, list(since), asked
        since[asked] = now
        low = rung


@lru_cache(maxsize=200_000)
def _refine(low: float, high: float, ages: tuple[float, ...]) -> tuple[tuple[float, float], ...]:
    """All brackets that can come out, ascending: upper end, and after how long."""
    if (low > 0 and settled(low, high)) or high <= SHORTEST or low >= LONGEST:  # no limit to judge by lies outside
        return ((high, 0.0),)
    test = best_test(low, high, dict(enumerate(ages)), PRIOR)
    wait = max(0.0, test.rest_seconds - ages[test.connection])
    rest = ages[test.connection] + wait
    after = tuple(0.0 if n == test.connection else age + wait for n, age in enumerate(ages))
    return tuple((end, wait + then) for part in ((low, rest), (rest, high)) for end, then in _refine(*part, after))


def _moved(between: Sequence[float], chance: random.Random) -> tuple[float, ...]:
    """The rungs with some of them changed a little."""
    moved = list(between)
    kind = chance.random()
    if kind < 0.08 and len(moved) > 4:
        moved.pop(chance.randrange(len(moved)))
    elif kind < 0.16:
        moved.append(exp(chance.uniform(log(FLOOR * 1.1), log(LONGEST))))
    else:
        for _ in range(chance.choice((1, 1, 2, 3))):
            n = chance.randrange(len(moved))
            moved[n] *= exp(chance.gauss(0, chance.choice((0.005, 0.03, 0.1))))
    return tuple(sorted(moved))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=0.0, help="to search (default 0: only judge)")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--connections", type=int, default=8)
    options.add_argument(
        "--spared",
        type=float,
        default=ladder.SPARED_UNTIL_SECONDS,
        help="until so many seconds are survived: the sentinel",
    )
    options.add_argument("--rungs", help="to start from, in seconds, separated by commas (default: those in use)")
    chosen = options.parse_args()
    start = ladder._RUNGS_BETWEEN_SECONDS.get(chosen.connections, ())
    if chosen.rungs:
        start = tuple(sorted(float(rung) for rung in chosen.rungs.split(",")))

    def verdict(between: tuple[float, ...]) -> Verdict:
        return judge(ladder_with(between), chosen.connections, chosen.spared)

    def ladder_with(between: tuple[float, ...]) -> tuple[float, ...]:
        return rungs(FLOOR, CAP, chosen.connections, DEFAULTS, {chosen.connections: between})

    chance = random.Random(chosen.seed)
    now = best = (start, verdict(start))
    print(best[1], flush=True)
    if not chosen.minutes and not chosen.rungs and chosen.connections == 8:
        for told, (between, spared) in OTHERS.items():
            print(f"{told}: {judge(ladder_with(between), 8, spared)}")
    began, seconds = time.monotonic(), 60 * chosen.minutes
    while (passed := time.monotonic() - began) < seconds:
        heat = HOT * (COLD / HOT) ** (passed / seconds)
        between = _moved(now[0], chance)
        if any(high < low * 1.02 for low, high in pairwise(between)):
            continue
        other = verdict(between)
        if other.cost < now[1].cost or chance.random() < exp((now[1].cost - other.cost) / heat):
            now = between, other
        if other.cost < best[1].cost:
            best = between, other
            heeded = set(between) & set(ladder_with(between))  # not those close to the rung of a default
            print(f"{other}: {', '.join(f'{rung:.4g}' for rung in sorted(heeded))}", flush=True)


if __name__ == "__main__":
    main()
