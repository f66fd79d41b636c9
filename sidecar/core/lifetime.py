"""What the lives of busy connections say about a limit on their age.

Theory of operation
===================

A path may end a connection at an age, however busy it is: a proxy with a longest connection time, a firewall whose
entries are not renewed. Probes that rest cannot tell this from an idle limit, since they are as old as they are rested.
So the witnesses here are connections that are never left to rest for as long as rests are proven to be survived: the
arm `lifetime`, and the heartbeat's session. Whatever ends those, it was not idleness.

One such death may have any cause, so it makes a limit only *suspected*. It is known when another died at the same age,
give or take AGREE, and at another time: what kills two connections in one moment is an event, whatever their ages. A
connection that lived on beyond that age refutes a suspicion. It does not refute a limit that several have met, because
the next connection may be led through another gateway; only when most live on is the limit taken for history.

All ages are in seconds. Between its last answer and the discovery of its end a connection may have died at any age, so
each death is a bracket.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

from sidecar.core.facts import Death

AGREE = 1.05
"""Deaths at ages within this factor are taken to be of one limit; a life this much longer than one refutes it."""

OUTNUMBERED = 3
"""A limit that several have met is history when so many times as many have lived on since the first of them."""

VAGUE = 1.5
"""A bracket of ages wider than this factor."""

_REMEMBERED = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """How old one connection got; `at` is when that was known, monotonic seconds. `death` is None while it lives.

    It answered at the age of `lived_seconds`, and was dead, or last seen alive, at `age_seconds`.
    """

    lived_seconds: float
    age_seconds: float
    at: float
    death: Death | None = None
    sqlstate: str | None = None

    @property
    def vague(self) -> bool:
        """Whether it may have died at so many ages that its death says nothing."""
        return self.age_seconds > VAGUE * self.lived_seconds

    @property
    def began(self) -> float:
        """The time at which it was last known to live."""
        return self.at - (self.age_seconds - self.lived_seconds)

    def agrees(self, other: Life) -> bool:
        """Whether both may have died at the same age."""
        return max(self.lived_seconds, other.lived_seconds) <= AGREE * min(self.age_seconds, other.age_seconds)


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """The lives of one regime, and the limit they show. Immutable: what takes a life returns what is known then."""

    deaths: tuple[Life, ...] = ()  # of busy connections, in order of time
    survivors: tuple[Life, ...] = ()  # since the first of them
    witnesses: tuple[Life, ...] = ()  # deaths that stand and agree, the lowest that do

    def add(self, life: Life) -> Lifetimes:
        """Take a death of a busy connection, or the age that any connection reached."""
        if life.death is not None:
            known = replace(self, deaths=(*self.deaths, life)[-_REMEMBERED:])
        elif self.deaths:
            known = replace(self, survivors=(*self.survivors, life)[-_REMEMBERED:])
        else:
            return self  # nothing to refute
        return replace(known, witnesses=known._weighed())

    def _weighed(self) -> tuple[Life, ...]:
        for death in sorted(self.deaths, key=lambda life: life.age_seconds):
            agreeing = tuple(other for other in self.deaths if other.agrees(death))
            first = min(other.at for other in agreeing)
            beyond = sum(life.at > first and life.lived_seconds >= AGREE * death.age_seconds for life in self.survivors)
            if beyond == 0 or (_of_several_times(agreeing) and beyond <= OUTNUMBERED * len(agreeing)):
                return agreeing
        return ()

    @property
    def suspected(self) -> bool:
        """Whether any busy connection died at an age that none has outlived since."""
        return bool(self.witnesses)

    @property
    def known(self) -> bool:
        """Whether that repeated itself."""
        return _of_several_times(self.witnesses)

    def expects(self, life: Life) -> bool:
        """Whether a death at this age would be nothing new."""
        return any(life.agrees(witness) for witness in self.witnesses)

    @property
    def proven(self) -> float | None:
        """The longest age lived through below the shortest fatal one; None while no limit is suspected."""
        if not self.witnesses:
            return None
        dead_by = self.witness.age_seconds
        ages = (life.lived_seconds for life in (*self.deaths, *self.survivors) if life.lived_seconds < dead_by)
        return max(ages, default=0.0)

    @property
    def witness(self) -> Life:
        """The death at the lowest age of those that show the limit. There must be one."""
        return min(self.witnesses, key=lambda life: life.age_seconds)


def _of_several_times(deaths: tuple[Life, ...]) -> bool:
    """Whether no single event can have caused them all: two have no instant in common."""
    spans = sorted((death.at, death.began) for death in deaths)
    return any(began > until for (until, _), (_, began) in pairwise(spans))
