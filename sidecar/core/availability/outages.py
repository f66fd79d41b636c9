"""One outage in the making, and what kind it turns out to be.

Theory of kinds
===============

What the last words of a session and the failed attempts tell is circumstantial; who answers afterwards is proof:

- another server (see `identity`) → failover, or switchover if the old one went in good order, telling its sessions that
  an administrator stopped it;
- the same server, started anew → restart. How it went is told by the words (see `signals`): a stop announced as FATAL
  is a fast one, as a WARNING an immediate one; the crash of another session takes all down although the server lives
  on; sessions orphaned by a killed server, and no words at all, are a crash too;
- the same life of the same server → it was never gone. If fresh connections were refused by the server itself, the
  kind is authentication (it refused the login) or refusal (too many connections, mostly). If it was we who had no
  password to show, or did not trust the server's certificate, it is authentication too. If they did not get there, it
  is a partition. If they worked at once, a session that was ended is a cull, one that fell silent a partition of its
  own.

Which of several answers counts is told by time, not by number: each holds until the next attempt, and refused ones are
seldom repeated. What answers counts more than how the session ended: a database that says 28P01 was not restarted,
whoever ended the session before, unless another life answers at last.

A connection that is let in and then left without an answer waits in the queue of a pooler that is full; so does one
that hangs while the session is answered. That is a refusal (`QUEUE`), although nobody says so.

A session that lives and can no longer write is a role flip, whatever becomes of it later: pre-ping cannot see those.
While nobody has let us in yet, the kind is a guess: what was refused, where anything was, else what the words suggest;
`unknown` where there is nothing to guess from.

A path with a limit on age ends a session like a cull or a partition of its own. When such an end has turned out to be
one of several at one age (see `lifetime`), its kind becomes `lifetime`: nothing was out but a connection too old.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

from sidecar.core.evidence import Death, Downtime, Ending, Interval, Outage, OutageKind
from sidecar.core.identity import Comparison, Identity, Kinship, compare
from sidecar.core.signals import EXHAUSTED, ServerSignal

_NO_TRUST = frozenset({"PasswordFile", "SSLCertVerificationError"})
"""Names of errors of our own making: we had no password to show, or did not trust the server's certificate."""

QUEUE = "queue"
"""What attempts are counted under that waited in vain behind others."""


def is_ours_to_mend(name: str) -> bool:
    """Whether an attempt that failed so will fail again, however often it is made, until something changes here."""
    return name in _NO_TRUST or name == EXHAUSTED


def over(outage: Outage) -> bool:
    """Whether the record is that of an outage that has ended."""
    return all(downtime.ended is not None for downtime in outage.downtimes.values())


def took_the_database_away(outage: Outage) -> bool:
    """Whether the outage has a length that an application should be prepared for.

    Not where fresh connections were turned away while the session went on reading and writing: the database was there,
    and what refused them may have been no more than our own opening of one connection too many. Such a record is kept
    and shown, and tells nothing of how long a failover takes.
    """
    beside_a_living_session = outage.read is None and outage.write is None
    return not (outage.kind == OutageKind.REFUSAL and beside_a_living_session)


def found_over(outage: Outage, at: float, *, writable: bool) -> Outage:
    """The record of an outage nobody watched to its end, when the database is found well `at` that time (wall clock).

    What is still open ended at some time since it began; writing only if it is `writable`.
    """

    def ended(downtime: Downtime | None) -> Downtime | None:
        if downtime is None or downtime.ended is not None:
            return downtime
        began = downtime.began.until
        return replace(downtime, ended=Interval(after=began, until=max(at, began)), watched=False)

    return replace(
        outage,
        connect=ended(outage.connect),
        read=ended(outage.read),
        write=ended(outage.write) if writable else outage.write,
    )


def of_age(outage: Outage) -> Outage:
    """The record of an outage that began when a session reached the age at which all end.

    That is its kind, once it is over, if that was all: a fresh connection worked at once, and could write if the
    session could.
    """
    read, write = outage.read, outage.write
    if outage.connect is not None or read is None or read.ended is None:
        return outage
    if write is not None and (write.ended is None or write.ended.after >= read.ended.until):
        return outage  # what worked again could not write at first
    return replace(outage, kind=OutageKind.LIFETIME)


@dataclass(slots=True)
class OpenInterval:
    """A downtime in the making, in monotonic seconds. `bad_at` is when it was last known to be bad."""

    began: tuple[float, float]
    bad_at: float
    ended: tuple[float, float] | None = None
    watched: bool = True  # see `Downtime`

    def bad(self, at: float) -> None:
        """It was bad when asked `at` that time; if it seemed to have ended, it had not."""
        self.bad_at = max(self.bad_at, at)
        self.ended = None

    def good(self, at: float) -> None:
        """It is good again, known `at` that time."""
        if self.ended is None:
            self.ended = (min(self.bad_at, at), at)


def mark_bad(downtime: OpenInterval | None, began: tuple[float, float], bad_at: float) -> OpenInterval:
    """The downtime, bad (again); a new one with this beginning if there was none."""
    if downtime is None:
        return OpenInterval(began, bad_at)
    downtime.bad(bad_at)
    return downtime


@dataclass(slots=True, kw_only=True)
class OngoingOutage:
    """An outage in the making. `offset` is wall clock minus monotonic time, one for the whole record."""

    id: str
    target: str
    offset: float
    before: Identity | None
    addresses_before: tuple[str, ...]
    flipped: bool = False  # it began with a living session that could no longer write
    connect: OpenInterval | None = None
    read: OpenInterval | None = None
    write: OpenInterval | None = None
    ending: Ending | None = None  # of the first session lost
    after: Identity | None = None
    addresses_after: tuple[str, ...] = ()
    dns_changed: tuple[float, float] | None = None
    refusals: Counter[str] = field(default_factory=Counter)  # attempts that a server at work refused, by SQLSTATE
    failures: Counter[str] = field(default_factory=Counter)  # attempts that found none at work, by SQLSTATE or error
    endings: Counter[str] = field(default_factory=Counter)  # sessions lost, by SQLSTATE
    lost: Counter[str] = field(default_factory=Counter)
    meanings: dict[str, ServerSignal] = field(default_factory=dict)  # of the SQLSTATEs that attempts met
    _held: defaultdict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # seconds for which that was the latest answer
    _heard: tuple[str, float] | None = None  # the latest, and when it was asked for

    def session_lost(self, ending: Ending) -> None:
        self.ending = self.ending or ending
        self.lost[ending.death] += 1
        if ending.sqlstate is not None:
            self.endings[ending.sqlstate] += 1

    def attempt_failed(self, code: str, said: ServerSignal | None, begun: float) -> None:
        """`code` is what it is counted under: a SQLSTATE, or the name of the error where no server spoke."""
        if code == EXHAUSTED or (said is not None and said.is_refusal):
            self.refusals[code] += 1
        else:
            self.failures[code] += 1
        if said is not None:
            self.meanings[code] = said
        self._hear(code, begun)

    def let_in(self, begun: float) -> None:
        """An attempt begun at that time succeeded."""
        self._hear(None, begun)

    def _hear(self, code: str | None, begun: float) -> None:
        latest = begun
        if self._heard is not None:
            latest = max(begun, self._heard[1])
            self._held[self._heard[0]] += latest - self._heard[1]
        self._heard = None if code is None else (code, latest)

    def leave(self) -> None:
        """Nobody watches it any more: what is still open will be found to have ended."""
        for downtime in self.downtimes:
            if downtime.ended is None:
                downtime.watched = False

    @property
    def refusal(self) -> str | None:
        """What attempts were refused with, if that is what counts: it held longest, or is the latest and all we know.

        Of several the one that held longest.
        """
        if not self.refusals:
            return None
        is_latest = self.after is None and self._heard is not None and self._heard[0] in self.refusals
        holds = sum(self._held[code] for code in self.refusals) >= sum(self._held[code] for code in self.failures)
        return self._foremost(self.refusals) if is_latest or holds else None

    @property
    def failure(self) -> str | None:
        """How attempts failed that found nobody at work; of several the way that held longest."""
        return self._foremost(self.failures) if self.failures else None

    def _foremost(self, counted: Counter[str]) -> str:
        return max(counted, key=lambda code: (self._held[code], counted[code]))

    def renamed(self, addresses: tuple[str, ...], when: tuple[float, float] | None) -> None:
        """The name now leads to these addresses, since some time in that interval."""
        self.dns_changed = when if self.addresses_before and addresses != self.addresses_before else None

    @property
    def comparison(self) -> Comparison:
        """How the server that answers now is related to the one that did before."""
        return compare(self.before, self.after)

    @property
    def moved(self) -> bool:
        """Whether another server answers now, as far as can be told."""
        return self.comparison.kinship is Kinship.ANOTHER_SERVER

    @property
    def one_session_only(self) -> bool:
        """Whether the server that answers now never went away, and nobody else noticed anything."""
        same_life = None not in (self.before, self.after) and not self.moved and not _restarted(self)
        return same_life and self.lost.total() == 1 and not self.failures and not self.refusals

    @property
    def downtimes(self) -> tuple[OpenInterval, ...]:
        return tuple(downtime for downtime in (self.connect, self.read, self.write) if downtime is not None)

    @property
    def began(self) -> float:
        """When it was first known to be bad."""
        return min(downtime.began[1] for downtime in self.downtimes)

    @property
    def over(self) -> bool:
        return all(downtime.ended is not None for downtime in self.downtimes)

    def record(self) -> Outage:
        """As it is kept, as far as it is known."""
        kind, detail = classify(self)
        return Outage(
            id=self.id,
            target=self.target,
            kind=kind,
            detail=detail,
            connect=self._downtime(self.connect),
            read=self._downtime(self.read),
            write=self._downtime(self.write),
            before=self.before,
            after=self.after,
            addresses_before=self.addresses_before,
            addresses_after=self.addresses_after,
            dns_changed=None if self.dns_changed is None else self._interval(self.dns_changed),
            connections_lost={str(loss): count for loss, count in self.lost.items()},
            errors=dict(self.endings + self.refusals + self.failures),
        )

    def _downtime(self, known: OpenInterval | None) -> Downtime | None:
        if known is None:
            return None
        ended = None if known.ended is None else self._interval(known.ended)
        return Downtime(began=self._interval(known.began), ended=ended, watched=known.watched)

    def _interval(self, times: tuple[float, float]) -> Interval:
        return Interval(after=times[0] + self.offset, until=times[1] + self.offset)


def classify(outage: OngoingOutage) -> tuple[OutageKind, str | None]:
    """Kind and detail of an outage (see the module and `Outage`)."""
    ending, after = outage.ending, outage.after
    if outage.flipped:
        return OutageKind.ROLE_FLIP, None
    if outage.moved:
        return (OutageKind.SWITCHOVER if _manner(ending) == "fast" else OutageKind.FAILOVER), outage.comparison.respect
    refusal, failure = outage.refusal, outage.failure
    if _restarted(outage) and (refusal is None or after is not None):
        return OutageKind.RESTART, _manner(ending)
    if refusal is not None:
        login_refused = outage.meanings.get(refusal) is ServerSignal.LOGIN_REFUSED
        return (OutageKind.AUTHENTICATION if login_refused else OutageKind.REFUSAL), refusal
    if failure in _NO_TRUST:
        return OutageKind.AUTHENTICATION, failure
    if ending is not None and ending.death is Death.SILENT:
        return OutageKind.PARTITION, "silent" if outage.failures else "this connection only"
    if after is not None and failure is not None:
        return OutageKind.PARTITION, failure
    if after is not None and ending is not None:
        return OutageKind.CULL, ending.sqlstate or ending.signal
    return OutageKind.UNKNOWN, None


def _restarted(outage: OngoingOutage) -> bool:
    """Whether the server began a new life, or at least ended all sessions and recovered."""
    ending = outage.ending
    said = None if ending is None else ending.said
    if said is ServerSignal.CRASHED or ServerSignal.STARTING in outage.meanings.values():
        return True
    if outage.comparison.kinship is Kinship.UNKNOWN:
        stopped = said in (ServerSignal.STOPPING, ServerSignal.ORPHANED)
        return stopped and outage.refusal is None and (outage.after is None or bool(outage.failures))
    return outage.comparison.kinship is Kinship.ANOTHER_LIFE


def _manner(ending: Ending | None) -> str | None:
    """How a server stopped: fast | immediate | crash | silent. None where it cannot be told."""
    if ending is None:
        return None
    if ending.death is Death.SILENT:
        return "silent"
    if ending.said is ServerSignal.STOPPING:
        return "fast" if ending.severity == "FATAL" else "immediate"
    return "crash" if ending.said in (None, ServerSignal.ORPHANED, ServerSignal.CRASHED) else None
