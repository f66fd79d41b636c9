"""Probe connections as the idle-limit machine knows them, and what may become of them.

Theory of operation
===================

A probe is opened, rests until its goal, is used once and given up. Where its answer is late it is overdue: the search
plans as if it had died, but believes it only when it has. A busy probe rests anew after each answer.

When it is opened it is known how long it may come to rest (see `planning`), and its session is ended by the server
itself somewhat later, so that none stays behind. It is not left to rest for longer than that: not even one without a
goal.

                        open_failed
                          ┌───┐
                          │   ▼
                        OPENING ── opened ──▶ RESTING ── asked ──▶ USING ── unanswered ──▶ OVERDUE
                                                 ▲                   │                        │
                                                 └──── answered ─────┴──────── answered ──────┘

There is no state for the end: a probe that died or was given up is forgotten. Facts about it may still be on their way;
so may facts that crossed a command. Whoever takes a fact asks first whether the probe `accepts` it. An event that the
table does not know raises, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from sidecar.core.evidence import Arm, Cause
from sidecar.core.identity import Identity

PATIENCE_SECONDS = 1.0
"""A use not answered by then is planned as a death: sooner than its deadline, which is there to be sure."""


class ProbeState(StrEnum):
    """What a probe connection is doing."""

    OPENING = "opening"
    RESTING = "resting"
    USING = "using"
    OVERDUE = "overdue"  # used, and no answer yet

    @property
    def asked(self) -> bool:
        """Whether it has been used and has not answered."""
        return self in (ProbeState.USING, ProbeState.OVERDUE)


class ProbeEvent(StrEnum):
    """What can happen to a probe connection that goes on."""

    OPENED = "opened"
    OPEN_FAILED = "open_failed"
    ASKED = "asked"
    UNANSWERED = "unanswered"  # for longer than patience lasts
    ANSWERED = "answered"


TRANSITIONS: Mapping[ProbeState, Mapping[ProbeEvent, ProbeState]] = {
    ProbeState.OPENING: {
        ProbeEvent.OPENED: ProbeState.RESTING,
        ProbeEvent.OPEN_FAILED: ProbeState.OPENING,
    },
    ProbeState.RESTING: {
        ProbeEvent.ASKED: ProbeState.USING,
    },
    ProbeState.USING: {
        ProbeEvent.UNANSWERED: ProbeState.OVERDUE,
        ProbeEvent.ANSWERED: ProbeState.RESTING,
    },
    ProbeState.OVERDUE: {
        ProbeEvent.ANSWERED: ProbeState.RESTING,
    },
}


class IllegalEventError(RuntimeError):
    """The event cannot happen to a probe in this state: a fault in the program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeView:
    """One resting probe connection, for progress displays."""

    connection: int
    arm: Arm
    state: ProbeState
    idle_seconds: float
    until_seconds: float | None  # the rest it is meant to reach; None for a sentinel


@dataclass(slots=True, kw_only=True)
class Probe:
    """One connection's life as the machine knows it. Times are monotonic seconds."""

    connection: int
    arm: Arm
    goal_seconds: float | None = None  # the rest to reach before it is used; None = only rest
    state: ProbeState = ProbeState.OPENING
    opened_at: float = 0.0
    since: float = 0.0  # when it began to rest, or was asked
    rested_seconds: float = 0.0  # before it was asked
    recorded_age_seconds: float = 0.0  # of a busy one
    failed_openings: int = 0
    asks: bool = True  # it asks its first question as soon as it is open
    longest_goal_seconds: float = inf  # what it may rest, by what its session was told when it was opened
    identity: Identity = field(default_factory=Identity)
    doubt: Cause | None = None  # something happened while it was open: its death testifies to nothing

    @property
    def is_open(self) -> bool:
        return self.state != ProbeState.OPENING

    @property
    def is_resting(self) -> bool:
        return self.state == ProbeState.RESTING

    @property
    def age_when_asked_seconds(self) -> float:
        """How old it was when it was asked last."""
        return self.since - self.opened_at

    @property
    def deadline(self) -> float | None:
        """When it wants attention: its goal is reached, it may not rest any longer, or its answer is late.

        None while only facts can move it.
        """
        if self.is_resting:
            rest = self.longest_goal_seconds if self.goal_seconds is None else self.goal_seconds
            return self.since + rest if rest < inf else None
        return self.since + PATIENCE_SECONDS if self.state == ProbeState.USING else None

    def idle_seconds(self, now: float) -> float:
        """How long it has rested, or had when it was asked."""
        return now - self.since if self.is_resting else self.rested_seconds

    def outgrown(self, now: float) -> bool:
        """Whether its goal lies beyond what it may rest, and is not reached already."""
        goal = self.goal_seconds
        return goal is not None and goal > max(self.longest_goal_seconds, self.idle_seconds(now))

    def accepts(self, event: ProbeEvent) -> bool:
        """Whether this can happen to it now."""
        return event in TRANSITIONS[self.state]

    def open_failed(self) -> None:
        self._advance(ProbeEvent.OPEN_FAILED)
        self.failed_openings += 1

    def opened(self, identity: Identity, now: float) -> None:
        self._advance(ProbeEvent.OPENED)
        self.identity, self.opened_at, self.since = identity, now, now

    def asked(self, now: float) -> None:
        """It is being used: its rest ends here."""
        self._advance(ProbeEvent.ASKED)
        self.rested_seconds, self.since = now - self.since, now

    def unanswered(self) -> None:
        self._advance(ProbeEvent.UNANSWERED)

    def answered(self, now: float) -> None:
        """It lives, and rests anew, without a goal. Whatever it was that cast doubt on it, it lived through it."""
        self._advance(ProbeEvent.ANSWERED)
        self.since, self.rested_seconds, self.goal_seconds, self.doubt = now, 0.0, None, None

    def view(self, now: float) -> ProbeView:
        return ProbeView(
            connection=self.connection,
            arm=self.arm,
            state=self.state,
            idle_seconds=self.idle_seconds(now),
            until_seconds=self.goal_seconds,
        )

    def _advance(self, event: ProbeEvent) -> None:
        """Raises `IllegalEventError`, and changes nothing, where the table has no such event."""
        if not self.accepts(event):
            raise IllegalEventError(f"{event} cannot happen to a probe that is {self.state}")
        self.state = TRANSITIONS[self.state][event]
