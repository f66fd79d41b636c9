"""Is the database there? The watch over one target, and the record of every time it was not.

Theory of operation
===================

Two witnesses are heard: the *session*, one connection that is kept open and asked regularly (a beat), and the *door*,
a fresh connection. They fail separately. `max_connections` exhausted or a rotated password shut the door and leave the
session alone; `pg_terminate_backend` ends the session and leaves the door open; a stop, a crash or a partition takes
both. Hence the states:

- unknown: never reached yet. Nothing is recorded, since nothing was seen to begin.
- healthy: both witnesses are content, and a write was possible.
- suspect: the session is lost, the door not yet tried.
- barred: the session lives, but no fresh connection can be had.
- down: neither.
- read_only: the session lives, but writing is refused, or not yet proven after (re)connecting. A read replica stays
  here, at peace: only what could be written before can have an outage of writing.

The session tells of its end at once if the server or a middlebox ends it, else by a deadline. On its loss fresh
connections are tried every `reconnect_every`, at most `IN_FLIGHT` unanswered at a time. The first that is answered
becomes the session, and must prove that it can write. While writing stays out, fresh connections continue to be tried,
because a session may sit on a server that the name no longer leads to. While all is well the door is tried every
`every` + `deadline`, which is how long a session's silence can go unnoticed, and at once when others report trouble.

Where sessions are known to end at some age however busy they are, none waits for that: when it is half as old, the next
fresh connection that reaches the same server is kept in its place. Its end would be no news, and look like an outage.

Everything between the first bad sign and the last spell's end is one outage with one record.

What an interval means
======================

An answer proves that all was well when the question was *asked*; an attempt that failed, or was outpaced by a later
one, proves that it was not when it was *begun*. So an outage began after the last answered question was asked, and
ended after the last vain attempt was begun. Its beginning is known better when the session tells of its end by itself:
nothing was unanswered, so the end is no older than what it takes to be told, for which `reconnect_every` is allowed; a
server in trouble may need a while to end its sessions. If session and door are found gone in the same moment, they went
together. By the time the loss of a session is noticed a fresh connection may work again: only vain attempts prove that
the outage goes on.

Times
=====

The machine runs on monotonic seconds. A record carries wall-clock times, made with the difference between both clocks
that held at the last answer before the outage: a step of the wall clock in the middle cannot bend a duration. A timer
that fires very late means that we slept, not that the database did: the question is given its time again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf
from types import MappingProxyType
from typing import Literal

from sidecar.core.availability.outages import ADMIN_SHUTDOWN, CRASH_SHUTDOWN, STOPPING, OngoingOutage, classify, spoil
from sidecar.core.evidence import STALE_WRITER, Aged, Cause, Death, Disturbed, Ending, Noticed, Outage
from sidecar.core.identity import Identity

IN_FLIGHT = 8
"""Unanswered attempts at a time: half of them at the ordinary pace, for a path that is only slow, the others spread
over the deadline. A server that accepts and then hangs loses no more than so many of its slots to us."""

_JITTER = 0.2  # attempts come up to this share of their spacing early, so that many sidecars do not call in step
_RULER = 0.001  # the end of an outage need not be timed finer than this share of its length: attempts slow down
_OUTPACED = 4  # an attempt that was answered so many times faster than another still waits proves that one lost
_SLEPT = 0.25  # a timer later than this share of the deadline says that we slept
_RENEWED = 0.5  # of the age that sessions reach: what is left is many looks at the door, and other paths may end sooner


class State(StrEnum):
    UNKNOWN = "unknown"
    HEALTHY = "healthy"
    SUSPECT = "suspect"
    BARRED = "barred"
    DOWN = "down"
    READ_ONLY = "read_only"


class Event(StrEnum):
    """What a fact means to the machine."""

    ANSWERED = "beat answered"
    LOST = "session lost"
    CONNECTED = "connected"
    NOT_CONNECTED = "not connected"
    WRITABLE = "write possible"
    NOT_WRITABLE = "write refused"


TRANSITIONS: Mapping[State, Mapping[Event, State]] = MappingProxyType(
    {
        State.UNKNOWN: {
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.UNKNOWN,
        },
        State.HEALTHY: {
            Event.ANSWERED: State.HEALTHY,
            Event.LOST: State.SUSPECT,
            Event.CONNECTED: State.HEALTHY,
            Event.NOT_CONNECTED: State.BARRED,
            Event.WRITABLE: State.HEALTHY,
            Event.NOT_WRITABLE: State.READ_ONLY,
        },
        State.SUSPECT: {
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.DOWN,
        },
        State.BARRED: {
            Event.ANSWERED: State.BARRED,
            Event.LOST: State.DOWN,
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.BARRED,
            Event.WRITABLE: State.BARRED,
            Event.NOT_WRITABLE: State.BARRED,
        },
        State.DOWN: {
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.DOWN,
        },
        State.READ_ONLY: {
            Event.ANSWERED: State.READ_ONLY,
            Event.LOST: State.SUSPECT,
            Event.CONNECTED: State.READ_ONLY,
            Event.NOT_CONNECTED: State.BARRED,
            Event.WRITABLE: State.HEALTHY,
            Event.NOT_WRITABLE: State.READ_ONLY,
        },
    }
)


def diagram() -> str:
    """The transition table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", f"    [*] --> {State.UNKNOWN}"]
    for state, ways in TRANSITIONS.items():
        for target in dict.fromkeys(ways.values()):
            if target is not state:
                events = " / ".join(event for event, to in ways.items() if to is target)
                lines.append(f"    {state} --> {target}: {events}")
    return "\n".join(lines) + "\n"


class IllegalEvent(Exception):  # noqa: N818 - a fault of the caller, named for what it is
    """A fact that cannot happen in this state. Nothing was changed."""


# Facts


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatAnswered:
    """The session answered a beat."""

    at: float  # wall clock


@dataclass(frozen=True, slots=True, kw_only=True)
class WriteAnswered:
    """The session answered whether it can write. `timeline` is the server's own, None where it would not tell."""

    at: float  # wall clock
    writable: bool
    timeline: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionEnded:
    """The session is gone."""

    ending: Ending


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleChanged:
    """The server told, unasked, that the session can from now on (not) write."""

    read_only: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """The name of the database was looked up for an attempt. `asked` is the (monotonic) time of the question."""

    addresses: tuple[str, ...]  # sorted
    asked: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """An attempt succeeded: a fresh connection has answered its first query."""

    attempt: int
    at: float  # wall clock
    identity: Identity
    addresses: tuple[str, ...] = ()  # all the name resolved to, sorted
    tells_role: bool = True  # the server reports a change of role unasked (PostgreSQL 14+, no pooler between)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotConnected:
    """An attempt failed. `error` is fit for operators; `name` is that of the error where there is no SQLSTATE."""

    attempt: int
    error: str
    name: str
    sqlstate: str | None = None  # None when no server answered


@dataclass(frozen=True, slots=True, kw_only=True)
class PooledLost:
    """Somebody else's connection is of no use any more: a Death, or STALE_WRITER where it lives.

    `well_at` is the (monotonic) time at which it was last known to be of use.
    """

    loss: str
    well_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspected:
    """Somebody else had trouble, connecting or otherwise: have a look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgeKnown:
    """To what age sessions live on this path, however busy they are; None where no limit on it is known (any more)."""

    proven_seconds: float | None


Fact = (
    BeatAnswered
    | WriteAnswered
    | SessionEnded
    | RoleChanged
    | Resolved
    | Connected
    | NotConnected
    | PooledLost
    | Suspected
    | AgeKnown
)


# Commands


@dataclass(frozen=True, slots=True)
class Beat:
    """Ask the session for a sign of life."""


@dataclass(frozen=True, slots=True)
class CheckWrite:
    """Ask the session whether it can write."""


@dataclass(frozen=True, slots=True)
class Drop:
    """Give up the session and all attempts under way; their facts are no longer of interest."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Try a fresh connection."""

    number: int


@dataclass(frozen=True, slots=True)
class Adopt:
    """The connection of this attempt is the session from now on; give up the former one, and all other attempts."""

    number: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Close the connection of this attempt, it was good."""

    number: int


@dataclass(frozen=True, slots=True)
class Record:
    """Keep this version of the outage. It is over when every spell has ended (`over`)."""

    outage: Outage


@dataclass(frozen=True, slots=True)
class Tell:
    """Tell those who draw conclusions from connections that end."""

    disturbed: Disturbed


@dataclass(frozen=True, slots=True)
class Witness:
    """Tell how old a session got that ended while nothing else was amiss: a fresh connection worked at once."""

    aged: Aged


Command = Beat | CheckWrite | Drop | Attempt | Adopt | Discard | Record | Tell | Witness


Question = Literal["beat", "write"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityStatus:
    """How things stand."""

    state: State
    since_at: float  # wall clock
    reachable: bool | None  # the session lives; None until first tried
    writable: bool | None  # None while not known
    writes_expected: bool = False  # writing was possible before, so that not being able to is a fault
    trouble_at: float | None = None  # wall clock: since when the outage lasts, or the wait for the first contact
    trouble_seconds: float | None = None  # how long that is
    kind: str | None = None  # of the outage under way, as far as can be told
    error: str | None = None  # the latest of that time, without secrets
    sqlstate: str | None = None  # of that error
    latency_seconds: float | None = None  # of the last answer


class AvailabilityMachine:
    """The watch over one target (see the module).

    `every`, `deadline` and `reconnect_every` are seconds. `run` makes the ids of records unique over restarts of the
    process. `jitter` gives numbers from [0, 1) that spread attempts in time. `now` is monotonic, `at` the wall clock,
    both of this moment.
    """

    def __init__(
        self,
        target: str,
        *,
        every: float,
        deadline: float,
        reconnect_every: float,
        run: str,
        jitter: Callable[[], float],
        now: float,
        at: float,
    ) -> None:
        self._target, self._run, self._jitter = target, run, jitter
        self._every, self._deadline, self._reconnect_every = every, deadline, reconnect_every
        self._state = State.UNKNOWN
        self._started = self._since = now
        self._offset = at - now
        # The session: the question it has not answered yet, when that was asked, and when its next timer is due.
        self._question: Question | None = None
        self._asked = self._due = now
        self._identity: Identity | None = None
        self._opened = (now, now)  # between these two
        self._aged: Aged | None = None  # the session lost in the present trouble, while it was the only one
        self._renew_after = inf  # seconds of age
        self._tells_role = False
        self._read_only = False  # as last told unasked
        self._check_wanted = False
        # The door: attempts under way with their beginning, and when the next may begin.
        self._attempts: dict[int, float] = {}
        self._attempted = 0
        self._attempted_at = self._hurried_at = -inf
        self._attempt_after = now
        # The name: what it leads to, when that was last asked, since when it does (after, until), and what answered.
        self._addresses: tuple[str, ...] = ()
        self._looked_up = now
        self._renamed: tuple[float, float] | None = None
        self._good_addresses: tuple[str, ...] = ()
        # When each was last known to be well.
        self._read_good = self._write_good = self._door_good = now
        self._writes_expected = False
        self._trouble: OngoingOutage | None = None
        self._troubles = 0
        self._past: tuple[OngoingOutage, float] | None = None  # the last one, and when it was over
        self._losses: deque[tuple[float, str]] = deque(maxlen=1000)  # of others, not yet explained
        self._error: tuple[str, str | None] | None = None
        self._latency: float | None = None

    def next_deadline(self) -> float | None:
        """When `handle_timer` wants to be called."""
        times = (self._session_time(), self._attempt_time())
        return min((time for time in times if time is not None), default=None)

    def handle_timer(self, now: float) -> list[Command]:
        """Do what is due. Harmless when nothing is."""
        commands: list[Command] = []
        session_time = self._session_time()
        if session_time is not None and now >= session_time:
            if self._question is None:
                commands += self._ask("beat", now)
            elif now - self._due > _SLEPT * self._deadline:
                self._due = now + self._deadline
            else:
                commands += self._lost(Ending(noticed=Noticed.DEADLINE), now)
        attempt_time = self._attempt_time()
        if attempt_time is not None and now >= attempt_time:
            commands += self._attempt(now)
        return commands

    def observe(self, fact: Fact, now: float) -> list[Command]:
        """Take a fact in; return what follows from it. Raises IllegalEvent, and then has changed nothing."""
        match fact:
            case BeatAnswered():
                return self._beat_answered(fact, now)
            case WriteAnswered():
                return self._write_answered(fact, now)
            case SessionEnded():
                return self._lost(fact.ending, now)
            case RoleChanged():
                return self._role_changed(fact, now)
            case Resolved():
                return self._resolved(fact, now)
            case Connected():
                return self._connected(fact, now)
            case NotConnected():
                return self._not_connected(fact, now)
            case PooledLost():
                return self._pooled_lost(fact, now)
            case Suspected():
                return self._look(now)
            case AgeKnown():
                self._renew_after = inf if fact.proven_seconds is None else _RENEWED * fact.proven_seconds
                return []

    def status(self, now: float) -> AvailabilityStatus:
        trouble = self._trouble
        bad_since = trouble.began if trouble else self._started if self._state is State.UNKNOWN else None
        offset = trouble.offset if trouble else self._offset
        error, sqlstate = self._error or (None, None)
        return AvailabilityStatus(
            state=self._state,
            since_at=self._since + self._offset,
            reachable=None if self._state is State.UNKNOWN and error is None else self._has_session,
            writable=self._writable(),
            writes_expected=self._writes_expected,
            trouble_at=None if bad_since is None else bad_since + offset,
            trouble_seconds=None if bad_since is None else max(0.0, now - bad_since),
            kind=None if trouble is None else classify(trouble)[0],
            error=error,
            sqlstate=sqlstate,
            latency_seconds=self._latency,
        )

    # The session

    @property
    def _has_session(self) -> bool:
        return Event.LOST in TRANSITIONS[self._state]

    def _session_time(self) -> float | None:
        return self._due if self._has_session else None

    def _ask(self, question: Question, now: float) -> list[Command]:
        # Beats stand on a grid, so that two deadlines are never further apart than `every`; having slept, on a new one.
        on_grid = question == "beat" and now - self._due <= _SLEPT * self._deadline
        self._question, self._asked = question, now
        self._due = (self._due if on_grid else now) + self._deadline
        self._check_wanted = self._check_wanted and question == "beat"
        return [Beat() if question == "beat" else CheckWrite()]

    def _answered(self, at: float, now: float) -> None:
        self._question = None
        self._offset = at - now
        self._latency = now - self._asked
        self._read_good = self._asked
        self._due = max(self._due - self._deadline + self._every, now)

    def _beat_answered(self, fact: BeatAnswered, now: float) -> list[Command]:
        self._require(self._question == "beat", fact)
        self._move(Event.ANSWERED, now)
        self._answered(fact.at, now)
        if self._tells_role:
            self._write_good = self._asked
        return self._ask("write", now) if self._check_wanted else []

    def _write_answered(self, fact: WriteAnswered, now: float) -> list[Command]:
        self._require(self._question == "write", fact)
        writable = fact.writable and not self._read_only  # that may have been told while the answer was under way
        self._move(Event.WRITABLE if writable else Event.NOT_WRITABLE, now)
        self._answered(fact.at, now)
        if self._identity is not None and fact.timeline is not None:
            self._identity = replace(self._identity, timeline=fact.timeline)
        commands: list[Command] = []
        if writable:
            self._writes_expected = True
            self._write_good = self._asked
            if self._trouble is not None and self._trouble.write is not None:
                self._trouble.write.good(now)
        else:
            commands += self._unwritable(self._asked, now)
            if self._check_wanted:
                commands += self._ask("write", now)
        return commands + self._settle(now)

    def _role_changed(self, fact: RoleChanged, now: float) -> list[Command]:
        self._require(self._has_session, fact)
        if fact.read_only:
            self._move(Event.NOT_WRITABLE, now)
            self._read_only = True
            return self._unwritable(self._write_good if self._question is None else self._asked, now)
        self._read_only = False
        if self._writable():
            return []
        self._check_wanted = True
        return self._ask("write", now) if self._question is None else []

    def _unwritable(self, bad_at: float, now: float) -> list[Command]:
        """A living session cannot write, which matters if that was possible before."""
        if not self._writes_expected:
            return []
        trouble = self._trouble or self._open(now, flipped=True)
        news = trouble.write is None
        trouble.write = spoil(trouble.write, (self._write_good, now), bad_at)
        if not news:
            return []
        self._hurry(now)
        return [Record(trouble.outage())]

    def _lost(self, ending: Ending, now: float) -> list[Command]:
        after, until = self._session_failed(ending, now)
        self._move(Event.LOST, now)
        alone = self._trouble is None
        trouble = self._trouble or self._open(now)
        self._aged = self._age_at_end(ending, now, trouble.id) if alone else None
        door = trouble.connect
        if door is not None and door.ended is None and door.began[1] > after and not trouble.refusals:
            # They went together; but what an attempt met, it met after it was begun.
            door.began = (min(max(after, door.began[0]), door.bad_at), door.began[1])
        trouble.read = spoil(trouble.read, (after, until), after)
        if self._writes_expected:
            write_after = after if self._tells_role else self._write_good
            trouble.write = spoil(trouble.write, (write_after, until), write_after)
        trouble.session_lost(ending)
        self._error = (ending.message or f"the connection ended: {ending.death}", ending.sqlstate)
        self._question = None
        self._attempts.clear()  # what began before testifies to nothing
        self._hurry(now)
        return [Drop(), Tell(Disturbed(cause=_suspicion(ending), aged=self._aged)), Record(trouble.outage())]

    def _age_at_end(self, ending: Ending, now: float, outage: str) -> Aged | None:
        """How old the session got; None where it was told to end, whatever its age."""
        if ending.sqlstate in STOPPING or self._identity is None:
            return None
        asked = self._question is not None and ending.noticed != Noticed.READING
        return Aged(
            outage=outage,
            lived_seconds=max(0.0, self._read_good - self._opened[1]),
            age_seconds=(self._asked if asked else now) - self._opened[0],
            ending=ending,
            identity=self._identity,
        )

    def _session_failed(self, ending: Ending, now: float) -> tuple[float, float]:
        """When reading ended: after, until."""
        if ending.death is Death.SILENT:
            return self._read_good, now if self._question is None else min(now, self._due)
        # A question already out may have been lost on the way long before this end; words of a server are fresh.
        patience = 0.0 if ending.sqlstate is None else self._reconnect_every
        if self._question is not None and now - self._asked > patience:
            return self._read_good, now
        return max(self._read_good, now - self._reconnect_every), now

    # The door

    @property
    def _hunting(self) -> bool:
        """Whether a connection is wanted, and not only a look at the door."""
        return self._trouble is not None or self._state is State.UNKNOWN

    def _attempt_time(self) -> float | None:
        # While the session is asked whether it can write nothing may replace it: a slow answer would never be heard.
        if self._question == "write" or len(self._attempts) >= (IN_FLIGHT if self._hunting else 1):
            return None
        return self._attempt_after

    def _attempt(self, now: float) -> list[Command]:
        self._attempted += 1
        self._attempted_at = self._attempts[self._attempted] = now
        self._pause(now)
        return [Attempt(self._attempted)]

    def _pause(self, now: float) -> None:
        """The next attempt comes in its time."""
        spacing = self._every + self._deadline
        if self._hunting:
            began = self._started if self._trouble is None else self._trouble.began
            spacing = max(self._reconnect_every, min(self._every, (now - began) * _RULER))
            if len(self._attempts) >= IN_FLIGHT // 2:
                spacing = max(spacing, self._deadline / (IN_FLIGHT // 2))
        self._attempt_after = now + spacing * (1 - _JITTER * self._jitter())

    def _hurry(self, now: float) -> None:
        """The next attempt comes at once, unless that would make a storm of them."""
        self._attempt_after = self._hurried_at = max(now, self._hurried_at + self._reconnect_every)

    def _connected(self, fact: Connected, now: float) -> list[Command]:
        self._require(fact.attempt in self._attempts, fact)
        hunting = self._hunting
        self._move(Event.CONNECTED, now)
        begun = self._attempts.pop(fact.attempt)
        self._offset = fact.at - now
        self._good_addresses = fact.addresses
        if self._trouble is not None:
            self._outpaced(self._trouble, now - begun, now)
        self._door_good = begun
        if hunting or self._renews(fact, now):
            return self._adopt(fact, now)
        # A standby behind the name that led to a writer: a pooler may have hidden the change from the session.
        self._check_wanted |= self._writes_expected and fact.identity.in_recovery is True
        check = self._check_wanted and self._question is None
        return [Discard(fact.attempt), *(self._ask("write", now) if check else [])]

    def _renews(self, fact: Connected, now: float) -> bool:
        """Whether the session is so old that this connection is better kept.

        Only for one to the same server, or a move would go unnoticed; and not while the session is asked, which may be
        silent for a reason.
        """
        same = self._identity is not None and fact.identity.key == self._identity.key
        return same and self._question is None and now - self._opened[0] >= self._renew_after

    def _outpaced(self, trouble: OngoingOutage, took: float, now: float) -> None:
        """An attempt took so long. Those that have waited for several times as long came to nothing."""
        for begun in self._attempts.values():
            if now - begun > _OUTPACED * took + self._reconnect_every:
                trouble.attempt_failed(None, "Unanswered")
                self._door_shut(trouble, begun, now)

    def _adopt(self, fact: Connected, now: float) -> list[Command]:
        commands: list[Command] = [Adopt(fact.attempt)]
        self._attempts.clear()
        self._identity, self._tells_role, self._read_only = fact.identity, fact.tells_role, False
        self._opened = (self._door_good, now)
        self._read_good = max(self._read_good, self._door_good)
        if (trouble := self._trouble) is not None:
            for span in (trouble.connect, trouble.read):
                if span is not None:
                    span.good(now)
            trouble.after = fact.identity
            if self._aged is not None and trouble.one_session_only:
                commands.append(Witness(self._aged))
            self._aged = None
            if trouble.ending is None and trouble.move is not None:
                commands.append(Tell(Disturbed(cause=Cause.FAILOVER)))  # though the former session lived to the last
            if not trouble.over:  # else the answer to the question below decides
                commands.append(Record(trouble.outage()))
        return commands + self._ask("write", now)

    def _not_connected(self, fact: NotConnected, now: float) -> list[Command]:
        self._require(fact.attempt in self._attempts, fact)
        begun = self._attempts[fact.attempt]
        if fact.sqlstate is None and now - begun > (1 + _SLEPT) * self._deadline:
            del self._attempts[fact.attempt]  # we slept: it was never given its time
            return []
        self._move(Event.NOT_CONNECTED, now)
        del self._attempts[fact.attempt]
        self._error = (fact.error, fact.sqlstate)
        if self._state is State.UNKNOWN:
            return []
        first = self._trouble is None
        trouble = self._trouble or self._open(now)
        trouble.attempt_failed(fact.sqlstate, fact.name)
        news = trouble.connect is None or trouble.connect.ended is not None
        self._door_shut(trouble, begun, now)
        if first:
            self._pause(now)  # the next was not meant to come so soon
        return [Record(trouble.outage())] if news else []

    def _door_shut(self, trouble: OngoingOutage, begun: float, now: float) -> None:
        """An attempt begun at that time came to nothing."""
        began = (self._door_good, now)
        lost = trouble.read if trouble.read is not None and trouble.read.ended is None else None
        if lost is not None and lost.began[1] > self._door_good and not trouble.refusals:
            began = (max(lost.began[0], self._door_good), lost.began[1])
        trouble.connect = spoil(trouble.connect, began, begun)
        if lost is not None:
            for span in (lost, trouble.write):
                if span is not None:
                    span.bad(begun)

    def _resolved(self, fact: Resolved, now: float) -> list[Command]:
        if fact.asked >= self._looked_up:  # several attempts share a question, and some are late to hear the answer
            if fact.addresses != self._addresses:
                self._renamed = (self._looked_up, now) if self._addresses else None
                self._addresses = fact.addresses
            self._looked_up = fact.asked
            if self._trouble is not None:
                self._trouble.renamed(self._addresses, self._renamed)
        return []

    # What others tell

    def _pooled_lost(self, fact: PooledLost, now: float) -> list[Command]:
        if fact.loss == STALE_WRITER and not self._writes_expected:
            return []  # nothing is amiss where only reading was ever possible
        if self._trouble is not None:
            self._trouble.lost[fact.loss] += 1
            return []
        if self._past is not None and fact.well_at < self._past[1]:
            past = self._past[0]
            past.lost[fact.loss] += 1
            return [Record(past.outage())]
        self._losses.append((now, fact.loss))
        return self._look(now)

    def _look(self, now: float) -> list[Command]:
        """Question both witnesses now rather than in their time."""
        if self._has_session and self._trouble is None:
            self._attempt_after = max(now, self._attempted_at + self._reconnect_every)
            if self._question is None:
                self._due = now
        return []

    # The outage

    def _open(self, now: float, *, flipped: bool = False) -> OngoingOutage:
        self._troubles += 1
        self._trouble = OngoingOutage(
            id=f"{self._run}-{self._troubles}",
            target=self._target,
            offset=self._offset,
            before=self._identity,
            addresses_before=self._good_addresses,
            flipped=flipped,
        )
        self._trouble.renamed(self._addresses, self._renamed)
        # What others lost a moment ago was the first of it.
        recently = now - self._every - self._deadline
        self._trouble.lost.update(loss for at, loss in self._losses if at > recently)
        self._losses.clear()
        return self._trouble

    def _settle(self, now: float) -> list[Command]:
        """The session has answered whether it can write. Is anything still amiss?"""
        trouble = self._trouble
        if trouble is not None and not trouble.over:
            return []
        self._trouble = self._error = None
        self._pause(now)
        if trouble is None:
            return []
        trouble.after, trouble.addresses_after = self._identity, self._good_addresses
        self._past = (trouble, now)
        return [Record(trouble.outage())]

    # Bookkeeping

    def _writable(self) -> bool | None:
        match self._state:
            case State.HEALTHY:
                return True
            case State.BARRED:
                spell = None if self._trouble is None else self._trouble.write
                return self._writes_expected and (spell is None or spell.ended is not None)
            case State.READ_ONLY if self._question == "write":
                return None
            case State.UNKNOWN:
                return None
            case _:
                return False

    def _move(self, event: Event, now: float) -> None:
        """Follow the table. Called before anything else is changed."""
        state = TRANSITIONS[self._state].get(event)
        if state is None:
            raise IllegalEvent(f"{event} while {self._state}")
        if state is not self._state:
            self._state, self._since = state, now

    def _require(self, possible: bool, fact: Fact) -> None:
        if not possible:
            raise IllegalEvent(f"{fact} while {self._state}")


def _suspicion(ending: Ending) -> Cause:
    """What the end of a session makes likely before anything else is known."""
    if ending.sqlstate in (ADMIN_SHUTDOWN, CRASH_SHUTDOWN):
        return Cause.RESTART
    return Cause.PARTITION if ending.death is Death.SILENT else Cause.UNKNOWN
