"""Is the database there? The availability of one target, and the record of every time it was not.

Theory of operation
===================

Two witnesses are heard, the session and the connect path; `states` tells why, and what follows from either's answer.

The session tells of its end at once if the server or a middlebox ends it, else by a deadline. On its loss fresh
connections are tried every `reconnect_every`, at most `IN_FLIGHT` unanswered at a time. The first that is answered
becomes the session, and must prove that it can write. While writing stays out, fresh connections continue to be tried,
because a session may sit on a server that the name no longer leads to. While all is well the connect path is tried
every `door_every`, which is seldom, since each look is a login; and at once when others report trouble. When it
alone is shut, the record is no more exact than that about the beginning, and says so.

Now and then the beat is a look at the server's sessions (`TABLE_SECONDS`): its answer is as good a sign of life, its
silence as bad a one.

Where sessions are known to end at some age however busy they are, none waits for that: when it is half as old, fresh
connections are made at a quicker pace, and the first that reaches the same server is kept in its place. Its end would
be no news, and look like an outage. A session that rested for so long that the server ended it as we had asked it to
is no news either: we were not awake.

Answers are answers
===================

A fresh connection that is refused, by words or because we have nothing to show for it, is refused by somebody at work:
the next is tried after a growing pause (see `pacing`), one at a time, whether there is a session or not, and those who
hold other connections to this target are told. The loss of the session is one more reason to look, once. Whoever does
not answer, or says that he is starting, will be back: then the pace is `reconnect_every` again.

A connect that *hangs* may be either. Beside a session that answers what it is asked in the second half of that time it
stands in a queue, that of a full session pooler above all, which lets the login through at once and leaves the first
question unanswered; this is a refusal like any other. If nothing was asked in that time, the session is asked now, and
its answer decides. Without a session it is a refusal where the login went through, unless we know that no pooler is in
between. While one attempt has logged in and waits no other is begun, so that there is never more than one in a queue;
and since a pooler does not notice that somebody has left its queue, that one goes on waiting when it has been judged.
That it is served at last shows to the moment when the queue had an end.

Suspended
=========

Where no session is wanted the connections are given back at once. With looks, a short connection every `LOOK_SECONDS`
asks for the table of sessions and tells whether the database is there. Nothing is recorded or timed meanwhile. An
outage that was under way stays open, unwatched, until somebody answers. Resuming starts as at the very beginning.

Everything between the first bad sign and the end of the last downtime is one outage with one record.

What an interval means
======================

An answer proves that all was well when the question was *asked*; an attempt that failed, or was outpaced by a later
one, proves that it was not when it was *begun*. So an outage began after the last answered question was asked, and
ended after the last vain attempt was begun. Its beginning is known better when the session tells of its end by itself:
nothing was unanswered, so the end is no older than what it takes to be told, for which `reconnect_every` is allowed; a
server in trouble may need a while to end its sessions. If session and connect path are found gone in the same moment,
they went together. By the time the loss of a session is noticed a fresh connection may work again: only vain attempts
prove that the outage goes on.

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
from math import inf
from typing import Literal

from sidecar.core.availability.commands import (
    Adopt,
    AskTable,
    Attempt,
    Beat,
    CheckWrite,
    Command,
    Discard,
    Drop,
    Look,
    Record,
    Tell,
    TellRefused,
    Witness,
)
from sidecar.core.availability.facts import (
    AgeKnown,
    BeatAnswered,
    Connected,
    CredentialsChanged,
    Fact,
    LoggedIn,
    NotConnected,
    PooledLost,
    Resolved,
    Resume,
    RoleChanged,
    SessionEnded,
    Suspected,
    Suspend,
    TableAnswered,
    Waits,
    WriteAnswered,
)
from sidecar.core.availability.outages import QUEUE, OngoingOutage, classify, is_ours_to_mend, mark_bad
from sidecar.core.availability.pacing import Refusals
from sidecar.core.availability.states import TRANSITIONS, Event, IllegalEvent, State
from sidecar.core.availability.status import AvailabilityStatus
from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import STALE_WRITER, Aged, Cause, Death, Disturbed, Ending, Noticed
from sidecar.core.identity import Identity
from sidecar.core.signals import EXHAUSTED, ServerSignal

IN_FLIGHT = 8
"""Unanswered attempts at a time: half of them at the ordinary pace, for a path that is only slow, the others spread
over the deadline. A server that accepts and then hangs loses no more than so many of its slots to us."""

_JITTER_SHARE = 0.2
"""Of their spacing: attempts come up to that much early, so that many sidecars do not call in step."""

_SPACING_SHARE = 0.001
"""Of an outage's length so far: its end need not be timed finer than that, so attempts slow down."""

_OUTPACED_TIMES = 4
"""An attempt that was answered so many times faster than another still waits proves that the other one came to
nothing."""

_SLEPT_SHARE = 0.25
"""Of the deadline: a timer that is later than that says that we slept."""

_RENEWAL_SHARE = 0.5
"""Of the age that sessions reach, from which one is replaced: what is left are many fresh connections, and other paths
may end theirs sooner."""

TABLE_SECONDS = 2.0
"""Between two looks at the server's sessions at most, while there is a session to ask: for so long, and no longer, an
application that grows may be refused because of us."""

LOOK_SECONDS = 60.0
"""Between two looks while there is none: each is a login."""

_SPREAD = 0.2
"""Of those: by so much they come earlier or later."""


Question = Literal["beat", "table", "write"]


@dataclass(frozen=True, slots=True)
class _Error:
    """What went wrong, for operators; and what the server meant by it, and how it put that, if one spoke."""

    text: str
    said: ServerSignal | None
    sqlstate: str | None
    exhausted: bool = False


class AvailabilityMachine:
    """Follows the availability of one target (see the module).

    `every`, `deadline`, `reconnect_every` and `door_every` are seconds. `run` makes the ids of records unique over
    restarts of the process. `jitter` gives numbers from [0, 1) that spread attempts in time. `now` is monotonic, `at`
    the wall clock, both of this moment.
    """

    def __init__(
        self,
        target: str,
        *,
        every: float,
        deadline: float,
        reconnect_every: float,
        door_every: float,
        run: str,
        jitter: Callable[[], float],
        now: float,
        at: float,
    ) -> None:
        self._target, self._run, self._jitter = target, run, jitter
        self._every, self._deadline, self._reconnect_every = every, deadline, reconnect_every
        self._door_every = door_every
        self._state = State.UNKNOWN
        self._started = self._since = now
        self._offset = at - now
        # The session: the question it has not answered yet, when that was asked, and when its next timer is due.
        self._question: Question | None = None
        self._asked = self._due = self._table_due = now
        self._identity: Identity | None = None
        self._opened = (now, now)  # between these two
        self._aged: Aged | None = None  # the session lost in the present outage, while it was the only one
        self._renew_after = inf  # seconds of age
        self._tells_role = False
        self._read_only = False  # as last told unasked
        self._check_wanted = False
        # The connect path: attempts under way with their beginning, and when the next may begin.
        self._attempts: dict[int, float] = {}
        self._logged_in: set[int] = set()  # those of them that wait for their first answer
        self._queueing: set[int] = set()  # those of them that have been judged to wait in a queue
        self._attempted = 0
        self._attempted_at = self._hurried_at = self._renewal_due = -inf
        self._attempt_after = now
        # Refusals: how many in a row, the latest answer if it was one, and whether that sets the pace.
        self._refusals = Refusals()
        self._refused: ServerSignal | None = None
        self._paced = False
        # An attempt that hung and its beginning, as long as it cannot be told why.
        self._hang: tuple[NotConnected, float] | None = None
        self._pooled: bool | None = None
        # While suspended:
        self._looks = False
        self._looking: int | None = None  # the attempt that is asked for the table
        self._found: bool | None = None  # by the last look: whether somebody answers
        self._missed_since: float | None = None  # none of the looks since then found anybody
        self._met_at: float | None = None  # when somebody last answered
        # The name: what it leads to, when that was last asked, since when it does (after, until), and what answered.
        self._addresses: tuple[str, ...] = ()
        self._looked_up = now
        self._renamed: tuple[float, float] | None = None
        self._good_addresses: tuple[str, ...] = ()
        # When each was last known to be well.
        self._read_good = self._write_good = self._connect_good = now
        self._writes_expected = False
        self._outage: OngoingOutage | None = None
        self._outages_begun = 0
        self._past: tuple[OngoingOutage, float] | None = None  # the last one, and when it was over
        self._losses: deque[tuple[float, str]] = deque(maxlen=1000)  # of others, not yet explained
        self._error: _Error | None = None  # the latest since all was well
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
                # A beat that is due about as soon is replaced by the look.
                commands += self._ask("table" if self._table_due <= now + self._every / 2 else "beat", now)
            elif now - self._due > _SLEPT_SHARE * self._deadline:
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
            case BeatAnswered() | TableAnswered():
                return self._look_answered(fact) if self._suspended else self._beat_answered(fact, now)
            case WriteAnswered():
                return self._write_answered(fact, now)
            case SessionEnded():
                return self._lost(fact.ending, now)
            case RoleChanged():
                return self._role_changed(fact, now)
            case Resolved():
                return self._resolved(fact, now)
            case LoggedIn() | Waits():
                return self._under_way(fact, now)
            case Connected():
                return self._connected(fact, now)
            case NotConnected():
                return self._not_connected(fact, now)
            case PooledLost():
                return self._pooled_lost(fact, now)
            case Suspected():
                return self._look(now)
            case Suspend() | Resume() | CredentialsChanged() | AgeKnown():
                return self._instructed(fact, now)

    def _instructed(self, fact: Suspend | Resume | CredentialsChanged | AgeKnown, now: float) -> list[Command]:
        """What is wanted or known elsewhere, rather than seen of the database."""
        match fact:
            case Suspend():
                return self._suspend(fact, now)
            case Resume():
                return self._resume(now)
            case CredentialsChanged():
                if self._paced:
                    self._refusals.clear()  # both ends of a change may come one after the other
                    self._attempt_after = now
            case AgeKnown():
                self._renew_after = inf if fact.proven_seconds is None else _RENEWAL_SHARE * fact.proven_seconds
        return []

    def status(self, now: float) -> AvailabilityStatus:
        outage = self._outage
        out_since = outage.began if outage else self._started if self._state is State.UNKNOWN else None
        reachable = None if self._state is State.UNKNOWN and self._error is None else self._has_session
        if self._suspended:
            outage, out_since, reachable = None, self._missed_since, self._found
        offset = outage.offset if outage else self._offset
        error = self._error
        return AvailabilityStatus(
            state=self._state,
            since_at=self._since + self._offset,
            reachable=reachable,
            writable=self._writable(),
            writes_expected=self._writes_expected,
            out_since_at=None if out_since is None else out_since + offset,
            out_seconds=None if out_since is None else max(0.0, now - out_since),
            kind=None if outage is None else classify(outage)[0],
            error=None if error is None else error.text,
            said=None if error is None else error.said,
            sqlstate=None if error is None else error.sqlstate,
            latency_seconds=self._latency,
            met=self._met_at is not None,
            suspended=self._suspended,
            paused=self._suspended and not self._looks,
            refused=self._refused,
            queued=self._refused is ServerSignal.QUEUED,
            exhausted=error is not None and error.exhausted,
        )

    @property
    def awaits_credentials(self) -> bool:
        """Whether other credentials might be accepted: their change is to be told."""
        return self._paced

    # The session

    @property
    def _has_session(self) -> bool:
        return Event.LOST in TRANSITIONS[self._state]

    def _session_time(self) -> float | None:
        if not self._has_session:
            return None
        return self._due if self._question is not None else min(self._due, self._table_due)

    def _ask(self, question: Question, now: float) -> list[Command]:
        # Beats stand on a grid, so that two deadlines are never further apart than `every`; having slept, on a new one.
        on_grid = question != "write" and 0 <= now - self._due <= _SLEPT_SHARE * self._deadline
        self._question, self._asked = question, now
        self._due = (self._due if on_grid else now) + self._deadline
        self._check_wanted = self._check_wanted and question != "write"
        if question == "table":
            self._table_due = now + TABLE_SECONDS * (1 - _JITTER_SHARE + _JITTER_SHARE * self._jitter())
        return [_QUESTIONS[question]]

    def _answered(self, at: float, now: float) -> None:
        self._question = None
        self._offset = at - now
        self._latency = now - self._asked
        self._read_good = self._asked
        self._met_at = now
        self._due = max(self._due - self._deadline + self._every, now)

    def _beat_answered(self, fact: BeatAnswered | TableAnswered, now: float) -> list[Command]:
        self._require(self._question == ("beat" if isinstance(fact, BeatAnswered) else "table"), fact)
        self._move(Event.ANSWERED, now)
        self._answered(fact.at, now)
        if self._tells_role:
            self._write_good = self._asked
        return (self._ask("write", now) if self._check_wanted else []) + self._judge_hang(now)

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
            if self._outage is not None and self._outage.write is not None:
                self._outage.write.good(now)
        else:
            commands += self._unwritable(self._asked, now)
            if self._check_wanted:
                commands += self._ask("write", now)
        return commands + self._settle(now) + self._judge_hang(now)

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
        outage = self._outage or self._begin_outage(now, flipped=True)
        news = outage.write is None
        outage.write = mark_bad(outage.write, (self._write_good, now), bad_at)
        if not news:
            return []
        self._hurry(now)
        return [Record(outage=outage.record())]

    def _lost(self, ending: Ending, now: float) -> list[Command]:
        after, until = self._session_failed(ending, now)
        self._move(Event.LOST, now)
        if ending.own_limit and self._outage is None:
            return self._overslept(now)
        alone = self._outage is None
        outage = self._outage or self._begin_outage(now)
        self._aged = self._age_at_end(ending, now, outage.id) if alone else None
        connect = outage.connect
        if connect is not None and connect.ended is None and connect.began[1] > after and not outage.refusals:
            # They went together; but what an attempt met, it met after it was begun.
            connect.began = (min(max(after, connect.began[0]), connect.bad_at), connect.began[1])
        outage.read = mark_bad(outage.read, (after, until), after)
        if self._writes_expected:
            write_after = after if self._tells_role else self._write_good
            outage.write = mark_bad(outage.write, (write_after, until), write_after)
        outage.session_lost(ending)
        text = ending.message or f"the connection ended: {ending.death}"
        self._error = _Error(text, ending.said, ending.sqlstate)
        if self._hang is not None:  # it met what the session met
            hung, begun = self._hang
            outage.attempt_failed(hung.name, None, begun)
            self._attempt_in_vain(outage, begun, now)
        self._forget_questions()
        self._paced = False  # one look at once
        self._hurry(now)
        return [
            Drop(),
            Tell(disturbed=Disturbed(cause=_suspicion(ending), aged=self._aged)),
            Record(outage=outage.record()),
        ]

    def _overslept(self, now: float) -> list[Command]:
        """The server did what we had asked it to, because we were not awake to ask for anything else."""
        self._forget_questions()
        self._hurry(now)
        return [Drop()]

    def _forget_questions(self) -> None:
        """What began before testifies to nothing."""
        self._question = self._hang = self._looking = None
        self._attempts.clear()
        self._logged_in.clear()
        self._queueing.clear()

    def _age_at_end(self, ending: Ending, now: float, outage_id: str) -> Aged | None:
        """How old the session got; None where it was told to end, whatever its age."""
        if self._identity is None or (ending.said is not None and ending.said.out_of_service):
            return None
        asked = self._question is not None and ending.noticed != Noticed.READING
        return Aged(
            outage=outage_id,
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
        patience = 0.0 if ending.said is None else self._reconnect_every
        if self._question is not None and now - self._asked > patience:
            return self._read_good, now
        return max(self._read_good, now - self._reconnect_every), now

    # The connect path

    @property
    def _reconnecting(self) -> bool:
        """Whether a connection is wanted, and not only a look at the connect path."""
        return not self._suspended and (self._outage is not None or not self._has_session)

    def _attempt_time(self) -> float | None:
        if self._suspended:
            return self._attempt_after if self._looks and not self._attempts else None
        # While the session is asked whether it can write nothing may replace it: a slow answer would never be heard.
        if self._question == "write" or self._hang is not None or (self._logged_in and self._pooled is not False):
            return None
        if len(self._attempts) >= (IN_FLIGHT if self._reconnecting and not self._paced else 1):
            return None
        return self._attempt_after if self._reconnecting else min(self._attempt_after, self._renewal_time())

    def _renewal_time(self) -> float:
        """When the session is so old that fresh connections, which might replace it, are made sooner."""
        return max(self._opened[0] + self._renew_after, self._renewal_due)

    def _attempt(self, now: float) -> list[Command]:
        self._attempted += 1
        self._attempted_at = self._attempts[self._attempted] = now
        # In step with the beats, each would find the session being asked, and replace nothing.
        self._renewal_due = now + (self._every + self._deadline) * (1 - _JITTER_SHARE * self._jitter())
        self._pause(now)
        return [
            Attempt(number=self._attempted, role=ConnectionRole.LOOK if self._suspended else ConnectionRole.HEARTBEAT)
        ]

    def _spread(self, seconds: float) -> float:
        return seconds * (1 - _SPREAD + 2 * _SPREAD * self._jitter())

    def _pause(self, now: float) -> None:
        """The next attempt comes in its time."""
        if self._suspended:
            pause = self._refusals.pause(now, self._jitter()) if self._paced else 0.0
            self._attempt_after = now + max(pause, self._spread(LOOK_SECONDS))
            return
        if self._paced:
            self._attempt_after = now + self._refusals.pause(now, self._jitter())
            return
        spacing = self._door_every
        if self._reconnecting:
            began = self._started if self._outage is None else self._outage.began
            spacing = max(self._reconnect_every, min(self._every, (now - began) * _SPACING_SHARE))
            if len(self._attempts) >= IN_FLIGHT // 2:
                spacing = max(spacing, self._deadline / (IN_FLIGHT // 2))
        self._attempt_after = now + spacing * (1 - _JITTER_SHARE * self._jitter())

    def _hurry(self, now: float) -> None:
        """The next attempt comes at once, unless that would make a storm of them."""
        self._attempt_after = self._hurried_at = max(now, self._hurried_at + self._reconnect_every)

    def _connected(self, fact: Connected, now: float) -> list[Command]:
        self._require(fact.attempt in self._attempts, fact)
        reconnecting = self._reconnecting
        self._move(Event.CONNECTED, now)
        self._offset = fact.at - now
        self._good_addresses, self._pooled = fact.addresses, fact.pooled
        self._met_at = now
        self._accepted()
        if self._suspended:
            return self._look_succeeded(fact, now)
        begun, queued = self._attempts[fact.attempt], fact.attempt in self._queueing
        self._forget_attempt(fact.attempt)
        good_since = max(begun, now - self._reconnect_every) if queued else begun
        if self._outage is not None:
            self._outage.let_in(good_since)
            self._outpaced(self._outage, now - begun, now)
            if queued and self._outage.connect is not None:
                self._outage.connect.bad(good_since)
        self._connect_good = good_since
        if reconnecting or self._renews(fact, now):
            return self._adopt(fact, now)
        # A standby behind the name that led to a writer: a pooler may have hidden the change from the session.
        self._check_wanted |= self._writes_expected and fact.identity.in_recovery is True
        check = self._check_wanted and self._question is None
        return [Discard(number=fact.attempt), *(self._ask("write", now) if check else [])]

    def _renews(self, fact: Connected, now: float) -> bool:
        """Whether the session is so old that this connection is better kept.

        Only for one to the same server, or a move would go unnoticed; and not while the session is asked, which may be
        silent for a reason.
        """
        same = self._identity is not None and fact.identity.key == self._identity.key
        return same and self._question is None and now - self._opened[0] >= self._renew_after

    def _outpaced(self, outage: OngoingOutage, took: float, now: float) -> None:
        """An attempt took so long. Those that have waited for several times as long came to nothing."""
        for begun in self._attempts.values():
            if now - begun > _OUTPACED_TIMES * took + self._reconnect_every:
                outage.attempt_failed("Unanswered", None, begun)
                self._attempt_in_vain(outage, begun, now)

    def _adopt(self, fact: Connected, now: float) -> list[Command]:
        commands: list[Command] = [Adopt(number=fact.attempt)]
        self._forget_questions()
        self._table_due = now  # nothing is known of the server's sessions
        self._identity, self._tells_role, self._read_only = fact.identity, fact.tells_role, False
        self._opened = (self._connect_good, now)
        self._read_good = max(self._read_good, self._connect_good)
        if (outage := self._outage) is not None:
            for downtime in (outage.connect, outage.read):
                if downtime is not None:
                    downtime.good(now)
            outage.after = fact.identity
            if self._aged is not None and outage.one_session_only:
                commands.append(Witness(aged=self._aged))
            self._aged = None
            if outage.ending is None and outage.moved:
                commands.append(
                    Tell(disturbed=Disturbed(cause=Cause.FAILOVER))
                )  # though the former session lived to the last
            if not outage.over:  # else the answer to the question below decides
                commands.append(Record(outage=outage.record()))
        return commands + self._ask("write", now)

    def _not_connected(self, fact: NotConnected, now: float) -> list[Command]:
        self._require(fact.attempt in self._attempts, fact)
        begun = self._attempts[fact.attempt]
        queued = fact.attempt in self._queueing
        if fact.said is None and not queued and now - begun > (1 + _SLEPT_SHARE) * self._deadline:
            self._forget_attempt(fact.attempt)  # we slept: it was never given its time
            return []
        if fact.hung and fact.said is None and self._has_session and not queued:
            self._forget_attempt(fact.attempt)
            self._hang = self._hang or (fact, begun)
            return self._judge_hang(now)
        logged_in = fact.attempt in self._logged_in
        self._move(Event.NOT_CONNECTED, now)
        self._forget_attempt(fact.attempt)
        if fact.hung and fact.said is None and (queued or (logged_in and self._pooled is not False)):
            fact = replace(fact, said=ServerSignal.QUEUED)
        return self._failed(fact, begun, now)

    def _forget_attempt(self, number: int) -> None:
        del self._attempts[number]
        self._logged_in.discard(number)
        self._queueing.discard(number)
        if number == self._looking:
            self._looking = None

    def _judge_hang(self, now: float) -> list[Command]:
        """An attempt got no answer, but the session did get one: was that asked for when the attempt should have had
        its own?"""
        if self._hang is None:
            return []
        fact, begun = self._hang
        if self._read_good < begun + self._deadline / 2:
            return self._ask("beat", now) if self._question is None else []
        self._hang = None
        return self._queued(fact, begun, now)

    def _under_way(self, fact: LoggedIn | Waits, now: float) -> list[Command]:
        self._require(fact.attempt in self._attempts, fact)
        self._logged_in.add(fact.attempt)
        begun = self._attempts[fact.attempt]
        if isinstance(fact, LoggedIn) or now - begun > (1 + _SLEPT_SHARE) * self._deadline:
            return []
        hung = NotConnected(attempt=fact.attempt, error=fact.error, name=TimeoutError.__name__, hung=True)
        if not self._has_session:
            return self._queued(hung, begun, now)
        self._hang = self._hang or (hung, begun)
        return self._judge_hang(now)

    def _queued(self, fact: NotConnected, begun: float, now: float) -> list[Command]:
        """An attempt stands in a queue; it may go on waiting there."""
        self._move(Event.NOT_CONNECTED, now)
        if fact.attempt in self._attempts:
            self._queueing.add(fact.attempt)
            self._attempts[fact.attempt] = now  # from here on it is another try
        return self._failed(replace(fact, said=ServerSignal.QUEUED), begun, now)

    def _failed(self, fact: NotConnected, begun: float, now: float) -> list[Command]:
        """An attempt begun at that time came to nothing, and it is known why."""
        self._error = _Error(fact.error, fact.said, fact.sqlstate, exhausted=fact.name == EXHAUSTED)
        was_paced, first = self._paced, self._outage is None
        if (fact.said is not None and fact.said.is_refusal) or is_ours_to_mend(fact.name):
            self._refused, self._paced = fact.said, True
            if self._refusals.add(begun, now):
                # Who stood in a queue has only just left it.
                self._pause(now if fact.said is ServerSignal.QUEUED else begun)
        else:
            self._refused, self._paced = None, False
            if was_paced:
                self._pause(now)
        told: list[Command] = [] if self._refused is None else [TellRefused(said=self._refused)]
        if self._suspended:
            self._found = False
            self._missed_since = begun if self._missed_since is None else self._missed_since
            return told
        if self._state is State.UNKNOWN:
            return told
        outage = self._outage or self._begin_outage(now)
        outage.attempt_failed(
            QUEUE if fact.said is ServerSignal.QUEUED else fact.sqlstate or fact.name, fact.said, begun
        )
        news = outage.connect is None or outage.connect.ended is not None
        if first and not self._has_session:  # it was lost without anything being amiss
            outage.read = mark_bad(outage.read, (self._read_good, now), begun)
            if self._writes_expected:
                outage.write = mark_bad(outage.write, (self._write_good, now), begun)
        self._attempt_in_vain(outage, begun, now)
        if first and not self._paced:
            self._pause(now)  # the next was not meant to come so soon
        return ([Record(outage=outage.record())] if news else []) + told

    def _accepted(self) -> None:
        """A fresh connection was let in: refusals are a matter of the past."""
        self._refusals.clear()
        self._refused = self._hang = None
        self._paced = False

    def _attempt_in_vain(self, outage: OngoingOutage, begun: float, now: float) -> None:
        """An attempt begun at that time came to nothing."""
        began = (self._connect_good, now)
        lost = outage.read if outage.read is not None and outage.read.ended is None else None
        if lost is not None and lost.began[1] > self._connect_good and not outage.refusals:
            began = (max(lost.began[0], self._connect_good), lost.began[1])
        outage.connect = mark_bad(outage.connect, began, begun)
        if lost is not None:
            for downtime in (lost, outage.write):
                if downtime is not None:
                    downtime.bad(begun)

    def _resolved(self, fact: Resolved, now: float) -> list[Command]:
        if fact.asked >= self._looked_up:  # several attempts share a question, and some are late to hear the answer
            if fact.addresses != self._addresses:
                self._renamed = (self._looked_up, now) if self._addresses else None
                self._addresses = fact.addresses
            self._looked_up = fact.asked
            if self._outage is not None:
                self._outage.renamed(self._addresses, self._renamed)
        return []

    # Suspended

    @property
    def _suspended(self) -> bool:
        return self._state is State.SUSPENDED

    def _suspend(self, fact: Suspend, now: float) -> list[Command]:
        if self._suspended and self._looks == fact.looks:
            return []
        reachable = self._has_session if self._met_at is not None and not self._suspended else self._found
        self._move(Event.SUSPENDED, now)
        commands: list[Command] = [Drop()]
        if (outage := self._outage) is not None and outage.over:  # but for a last answer, whether writing is possible
            commands.append(self._close(outage, now))
        elif outage is not None and any(downtime.watched for downtime in outage.downtimes):
            outage.leave()
            commands.append(Record(outage=outage.record()))
        self._forget_questions()
        self._aged, self._check_wanted = None, False
        self._looks = fact.looks
        self._found = reachable if fact.looks else None
        self._missed_since = (now if outage is None else outage.began) if self._found is False else None
        if self._found is not False:
            self._error = None
        if self._found and self._met_at is not None:  # who has just answered need not be asked again so soon
            self._attempt_after = self._met_at + self._spread(LOOK_SECONDS)
        elif not self._paced:
            self._attempt_after = now
        return commands

    def _look_succeeded(self, fact: Connected, now: float) -> list[Command]:
        """The look is answered; that may be news of an outage left open, and of the server's sessions."""
        begun, self._attempts[fact.attempt] = self._attempts[fact.attempt], now
        self._logged_in.discard(fact.attempt)
        self._looking = fact.attempt
        self._found, self._missed_since, self._error = True, None, None
        self._connect_good = self._read_good = begun
        self._latency = now - begun
        commands: list[Command] = []
        if (outage := self._outage) is not None:
            self._identity = outage.after = fact.identity
            outage.let_in(begun)
            writable = fact.identity.in_recovery is not True
            for downtime in (outage.connect, outage.read, outage.write if writable else None):
                if downtime is not None:
                    downtime.good(now)
            commands.append(self._close(outage, now) if outage.over else Record(outage=outage.record()))
        return [*commands, AskTable(number=fact.attempt)]

    def _look_answered(self, fact: BeatAnswered | TableAnswered) -> list[Command]:
        number = self._looking
        if number is None or isinstance(fact, BeatAnswered):
            raise IllegalEvent(f"{fact} while {self._state}")
        self._forget_attempt(number)
        return [Discard(number=number)]

    def _resume(self, now: float) -> list[Command]:
        self._move(Event.RESUMED, now)
        under_way = bool(self._attempts)
        self._forget_questions()
        self._accepted()
        self._error = None
        self._started = self._attempt_after = now
        return [Drop()] if under_way else []

    # What others tell

    def _pooled_lost(self, fact: PooledLost, now: float) -> list[Command]:
        if fact.loss == STALE_WRITER and not self._writes_expected:
            return []  # nothing is amiss where only reading was ever possible
        if self._suspended:
            return []
        if self._outage is not None:
            self._outage.lost[fact.loss] += 1
            return []
        if self._past is not None and fact.well_at < self._past[1]:
            past = self._past[0]
            past.lost[fact.loss] += 1
            return [Record(outage=past.record())]
        self._losses.append((now, fact.loss))
        return self._look(now)

    def _look(self, now: float) -> list[Command]:
        """Question both witnesses now rather than in their time."""
        if self._has_session and self._outage is None:
            self._attempt_after = max(now, self._attempted_at + self._reconnect_every)
            if self._question is None:
                self._due = now
        return []

    # The outage

    def _begin_outage(self, now: float, *, flipped: bool = False) -> OngoingOutage:
        self._outages_begun += 1
        self._outage = OngoingOutage(
            id=f"{self._run}-{self._outages_begun}",
            target=self._target,
            offset=self._offset,
            before=self._identity,
            addresses_before=self._good_addresses,
            flipped=flipped,
        )
        self._outage.renamed(self._addresses, self._renamed)
        # What others lost a moment ago was the first of it.
        recently = now - self._every - self._deadline
        self._outage.lost.update(loss for at, loss in self._losses if at > recently)
        self._losses.clear()
        return self._outage

    def _settle(self, now: float) -> list[Command]:
        """The session has answered whether it can write. Is anything still amiss?"""
        outage = self._outage
        if outage is not None and not outage.over:
            return []
        self._outage = self._error = None
        self._pause(now)
        return [] if outage is None else [self._close(outage, now)]

    def _close(self, outage: OngoingOutage, now: float) -> Record:
        """It is over, and somebody has answered."""
        outage.after, outage.addresses_after = self._identity, self._good_addresses
        self._past, self._outage = (outage, now), None
        return Record(outage=outage.record())

    # Bookkeeping

    def _writable(self) -> bool | None:
        match self._state:
            case State.HEALTHY:
                return True
            case State.CONNECT_BLOCKED:
                write = None if self._outage is None else self._outage.write
                return self._writes_expected and (write is None or write.ended is not None)
            case State.READ_ONLY if self._question == "write":
                return None
            case State.UNKNOWN | State.SUSPENDED:
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


_QUESTIONS: Mapping[Question, Command] = {"beat": Beat(), "table": Look(), "write": CheckWrite()}


def _suspicion(ending: Ending) -> Cause:
    """What the end of a session makes likely before anything else is known."""
    if ending.said is not None and ending.said.ends_sessions:
        return Cause.RESTART
    return Cause.PARTITION if ending.death is Death.SILENT else Cause.UNKNOWN
