"""What the lives of busy connections say about a limit on their age.

Theory of operation
===================

A path may end a connection at an age, however busy it is: a proxy with a longest connection time, a firewall whose
entries are not renewed. Probes that rest cannot tell this from an idle limit, since they are as old as they are rested.
So the witnesses here are connections that are never left to rest for as long as rests are proven to be survived: the
arm `lifetime`, and the heartbeat's session. Whatever ends those, it was not idleness.

One such death may have any cause, so it makes a limit only *suspected*, until a connection, busy or not, outlives it. A
limit is known when that repeats itself: another died at the same age, give or take AGREE_RATIO, and at another time,
since what kills two connections in one moment is an event, whatever their ages (see `independence`). Two may still
agree by chance, and a longer life refutes them. It does not refute what three or more have met, the majority of all who
got no older, because the next connection may be led through another gateway; that is history only when busy ones
outlive it time and again.

All ages are in seconds. Between its last answer and the discovery of its end a connection may have died at any age, so
each death is a bracket.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

from sidecar.core.evidence import Aged, Arm, Death, Ending, Observation, Outcome
from sidecar.core.independence import no_instant_in_common

AGREE_RATIO = 1.02
"""Deaths at ages within this factor are taken to be of one limit. Two of unrelated causes agree about once in twenty
times, so none may contradict two."""

BEYOND_RATIO = 1.05
"""A life this much longer than one that ended has outlived it."""

OUTLIVED_TIMES = 6
"""A limit that three have met is history when more busy connections than this have outlived it since the last but one
of those."""

VAGUE_RATIO = 1.5
"""A death that may have been at ages further apart than this factor says nothing."""

_REMEMBERED = 50
"""Deaths, and lives that outlived one, kept each: the latest tell what holds now."""


def visible_resolution(seconds: float) -> float:
    """How far below a visible death the limit may lie: of a rest or an age, in seconds.

    A timer that closes by itself shows the limit exactly, but poolers look at their timers only now and then
    (PgBouncer three times a second) and other servers round to seconds.
    """
    return max(0.5, 0.02 * seconds)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeLimit:
    """The age (seconds) at which connections die however busy they are, once that has repeated itself."""

    proven_seconds: float
    dead_by_seconds: float
    estimate_seconds: float
    death: Death | None
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Life:
    """How old one connection got; `at` is when that was known, monotonic seconds. `death` is None while it lives.

    It answered at the age of `lived_seconds`, and was dead, or last seen alive, at `age_seconds`. What is told anew
    under the same `id` replaces what was told before.
    """

    id: str
    lived_seconds: float
    age_seconds: float
    at: float
    busy: bool
    death: Death | None = None
    sqlstate: str | None = None

    @classmethod
    def of(cls, observation: Observation, at: float) -> Life:
        """The life that a record tells of; `at` is when it ended or was last seen."""
        age, death = observation.age_seconds, observation.death
        if observation.outcome != Outcome.DIED or death is None:
            busy = observation.arm == Arm.LIFETIME
            return cls(id=observation.id, lived_seconds=age, age_seconds=age, at=at, busy=busy)
        lived = _lived_seconds(age, observation.idle_seconds, death)
        return cls(
            id=observation.id,
            lived_seconds=lived,
            age_seconds=age,
            at=at,
            busy=True,
            death=death,
            sqlstate=observation.sqlstate,
        )

    @classmethod
    def of_end(cls, ending: Ending, *, age_seconds: float, idle_seconds: float) -> Life:
        """The life of a busy connection that has just ended, or somebody else's, after a last rest.

        It is only compared by its ages: when it ended does not matter.
        """
        return cls(
            id="",
            lived_seconds=_lived_seconds(age_seconds, idle_seconds, ending.death),
            age_seconds=age_seconds,
            at=inf,
            busy=True,
            death=ending.death,
            sqlstate=ending.sqlstate,
        )

    @classmethod
    def of_session(cls, session: Aged) -> Life:
        """The life of somebody else's connection."""
        rest = session.age_seconds - session.lived_seconds
        return cls.of_end(session.ending, age_seconds=session.age_seconds, idle_seconds=rest)

    @property
    def vague(self) -> bool:
        """Whether it may have died at so many ages that its death says nothing."""
        return self.age_seconds > VAGUE_RATIO * self.lived_seconds

    @property
    def began(self) -> float:
        """The time at which it was last known to live."""
        return self.at - (self.age_seconds - self.lived_seconds)

    def agrees(self, other: Life) -> bool:
        """Whether both may have died at the same age."""
        return max(self.lived_seconds, other.lived_seconds) <= AGREE_RATIO * min(self.age_seconds, other.age_seconds)

    def outlives(self, death: Life) -> bool:
        """Whether it got clearly older than one that had died before."""
        return self.at > death.at and self.lived_seconds >= BEYOND_RATIO * death.age_seconds


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """The lives of one regime, and the limit they show. Immutable: what takes a life returns what is known then."""

    deaths: tuple[Life, ...] = ()  # of busy connections, in order of time
    busy: tuple[Life, ...] = ()  # busy connections that outlived one of those
    rested: tuple[Life, ...] = ()  # the same of those that rested
    witnesses: tuple[Life, ...] = ()  # deaths that stand and agree, the lowest that do

    def add(self, life: Life) -> Lifetimes:
        """Take a death of a busy connection, or the age that any connection has reached."""
        if life.death is not None:
            known = replace(self, deaths=(*self.deaths, life)[-_REMEMBERED:])
        elif not any(life.outlives(death) for death in self.deaths):
            return self
        elif life.busy:
            others = (other for other in self.busy if other.id != life.id)
            known = replace(self, busy=(*others, life)[-_REMEMBERED:])
        else:
            known = replace(self, rested=(*self.rested, life)[-_REMEMBERED:])
        return replace(known, witnesses=known._weighed())

    def _weighed(self) -> tuple[Life, ...]:
        for death in sorted(self.deaths, key=lambda life: life.age_seconds):
            agreeing = tuple(other for other in self.deaths if other.agrees(death))
            if self._stands(death, agreeing):
                return agreeing
        return ()

    def _stands(self, death: Life, agreeing: tuple[Life, ...]) -> bool:
        times = sorted(other.at for other in agreeing)
        earlier = sum(not other.agrees(death) and other.age_seconds < death.age_seconds for other in self.deaths)
        if len(agreeing) > 2 and no_instant_in_common(agreeing) and earlier < len(agreeing):
            since = replace(death, at=times[-2])
            return sum(life.outlives(since) for life in self.busy) <= OUTLIVED_TIMES
        since = replace(death, at=times[0])
        return not any(life.outlives(since) for life in (*self.busy, *self.rested, *self.deaths))

    @property
    def suspected(self) -> bool:
        """Whether any busy connection died at an age that none has outlived since."""
        return bool(self.witnesses)

    @property
    def known(self) -> bool:
        """Whether that repeated itself."""
        return no_instant_in_common(self.witnesses)

    @property
    def limit(self) -> AgeLimit | None:
        """The limit as it is told to others; None while it is not known."""
        if not self.known:
            return None
        proven, witness = self.proven or 0.0, self.witness
        visible = witness.death is not None and witness.death.visible
        return AgeLimit(
            proven_seconds=proven,
            dead_by_seconds=witness.age_seconds,
            estimate_seconds=witness.age_seconds if visible else (proven + witness.age_seconds) / 2,
            death=witness.death,
            sqlstate=witness.sqlstate,
        )

    def is_expected(self, life: Life) -> bool:
        """Whether a death at this age would be nothing new."""
        return any(life.agrees(witness) for witness in self.witnesses)

    @property
    def proven(self) -> float | None:
        """The longest age lived through below the shortest fatal one; None while no limit is suspected."""
        if not self.witnesses:
            return None
        witness = self.witness  # looked for once, not for each death
        below = (life.lived_seconds for life in self.deaths if life.lived_seconds < witness.age_seconds)
        return max(below, default=witness.lived_seconds)

    @property
    def dead_by(self) -> float:
        """The shortest fatal age; infinite while no limit is suspected."""
        return self.witness.age_seconds if self.witnesses else inf

    @property
    def refuted_by(self) -> float:
        """The age that outlives all that show the limit; infinite while none is suspected."""
        return BEYOND_RATIO * max((life.age_seconds for life in self.witnesses), default=inf)

    @property
    def witness(self) -> Life:
        """The death at the lowest age of those that show the limit. There must be one."""
        return min(self.witnesses, key=lambda life: life.age_seconds)


def _lived_seconds(age_seconds: float, idle_seconds: float, death: Death) -> float:
    """The age at which a connection that ended after a last rest was last known to live."""
    lived = age_seconds - idle_seconds
    if death.visible:  # it had lived until just before
        lived = max(lived, age_seconds - visible_resolution(age_seconds))
    return lived
