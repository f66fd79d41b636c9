"""Can one event have killed both?

Theory of operation
===================

Deaths are believed because they repeat themselves, so everything hangs on whether two of them are two. A gateway that
forgets its table, a proxy that is restarted, an administrator who clears the table: each kills many connections at
once, and counted one by one those deaths would prove any limit.

One event happens at an instant. So one event may have killed two connections only if there is an instant at which both
may have died. How well that instant is known differs:

- A death that *shows by itself* is seen when it happens, give or take the reading. Two of the same moment may be of one
  event; two of different moments cannot.
- A death *found on use* happened at any instant since the connection was last known to live. Two of those may be of one
  event whenever their intervals overlap, which they nearly always do where connections rest side by side.

Taken strictly, the second would leave resting connections no independent witnesses at all. So each question here errs
to the side on which an error costs least, given what else will put it right:

`separate_moments` (witnesses of an idle limit)
    Only deaths that showed in one moment are counted as one. What killed several unseen is put right by survivals:
    whoever rests as long and lives contradicts them, and they become strays.

`fewest_events` (strays: deaths that survivals contradict)
    The most lenient count: many with an instant in common are one event, because one accident must not condemn a limit.
    Those who rested through that whole time and live are the alibi: then it was no event that spared nobody.

`no_instant_in_common` (witnesses of a limit on age)
    The strictest: connections that are used all the time leave short intervals, so it can be afforded, and a limit on
    age rests on two deaths alone.

`in_company` (the cause of a single death seen at rest)
    Others ended in the same moment. A timer, of rest or of age, ends those together that are equally rested or equally
    old; who differs in both was ended by an event.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Protocol

ONE_MOMENT_SECONDS = 1.0
"""Deaths that showed by themselves no further apart may be of one event: an event takes a while to reach everybody."""

ALIKE_FROM, ALIKE_TO = 0.9, 1.1
"""Rests, or ages, whose ratio lies between are taken for equal: timers are coarse, and looked at now and then."""

_SHORTEST_SECONDS = 1e-9
"""Stands in for a rest or an age of zero, which has no ratio to anything."""


class Timed(Protocol):
    """A death and what is known of when it happened; monotonic seconds."""

    @property
    def at(self) -> float:
        """When it was noticed."""
        ...

    @property
    def began(self) -> float:
        """When the connection was last known to live: it died at an instant from then to `at`."""
        ...


class Witness(Protocol):
    """A death and whether it was seen as it happened."""

    @property
    def at(self) -> float: ...

    @property
    def visible(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EndAtRest:
    """A connection whose end showed while it rested; `at` in monotonic seconds."""

    at: float
    idle_seconds: float
    age_seconds: float


def separate_moments(deaths: Iterable[Witness]) -> int:
    """How many deaths there were; those seen in one moment may be of one event and count as one."""
    count, latest = 0, -inf
    for death in sorted(deaths, key=lambda death: death.at):
        if not death.visible or death.at - latest > ONE_MOMENT_SECONDS:
            count, latest = count + 1, death.at
    return count


def fewest_events(deaths: Iterable[Timed], lived: Iterable[Timed], *, many: float) -> int:
    """How many events it takes at least to explain deaths that need not be of a limit.

    More than `many` deaths that have an instant in common are one event, unless one of those who `lived` rested through
    all the time in which it must have happened. Fewer are counted one by one.
    """
    alibis = tuple(lived)
    groups: list[int] = []
    since, until = -inf, -inf  # the instants that all deaths of the latest group have in common
    for death in sorted(deaths, key=lambda death: death.at):
        since = max(since, death.began)
        if since < until and not any(alibi.began <= since and until <= alibi.at for alibi in alibis):
            groups[-1] += 1
        else:
            groups.append(1)
            since, until = death.began, death.at
    return sum(1 if size > many else size for size in groups)


def no_instant_in_common(deaths: Iterable[Timed]) -> bool:
    """Whether no single event can have caused them all: one had ended before another was last known to live."""
    intervals = sorted((death.at, death.began) for death in deaths)
    return any(began > ended for (ended, _), (_, began) in pairwise(intervals))


def in_company(end: EndAtRest, others: Iterable[EndAtRest], *, within_seconds: float) -> bool:
    """Whether another ended within so many seconds of this one, neither equally rested nor equally old."""
    return any(
        abs(other.at - end.at) <= within_seconds
        and not _alike(other.idle_seconds, end.idle_seconds)
        and not _alike(other.age_seconds, end.age_seconds)
        for other in others
    )


def _alike(one: float, other: float) -> bool:
    return ALIKE_FROM < one / max(other, _SHORTEST_SECONDS) < ALIKE_TO
