"""One outage in the making, and what kind it turns out to be.

Theory of kinds
===============

What the last words of a session and the failed attempts tell is circumstantial; who answers afterwards is proof:

- another server (another system, a later timeline, another address) → failover, or switchover if the old one went in
  good order, telling its sessions that an administrator stopped it;
- the same server, started anew → restart. How it went is told by the words: FATAL 57P01 is a fast stop, WARNING 57P01
  an immediate one, WARNING 57P02 the crash of another backend, after which the postmaster lives on but takes all
  sessions down; no words at all are a crash too;
- the same life of the same server → it was never gone. If fresh connections were refused by the server itself, the
  kind is authentication (class 28) or refusal (too many connections, mostly). If it was we who had no password to show,
  or did not trust the server's certificate, it is authentication too. If they did not get there, it is a partition. If
  they worked at once, a session that was ended is a cull, one that fell silent a partition of its own.

A session that lives and can no longer write is a role flip, whatever becomes of it later: pre-ping cannot see those.
While nobody has answered yet, the kind is a guess, and `unknown` where there is nothing to guess from.

A path with a limit on age ends a session like a cull or a partition of its own. When such an end has turned out to be
one of several at one age (see `lifetime`), its kind becomes `lifetime`: nothing was out but a connection too old.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

from sidecar.core.evidence import Death, Downtime, Ending, Interval, Outage, OutageKind
from sidecar.core.identity import Identity

ADMIN_SHUTDOWN, CRASH_SHUTDOWN, CANNOT_CONNECT_NOW = STOPPING = ("57P01", "57P02", "57P03")
_CONNECTION_EXCEPTION = "08"  # class of SQLSTATE: PgBouncer's, among others, when it cannot reach the server itself
_NO_TRUST = frozenset({"PasswordFile", "SSLCertVerificationError"})  # errors of our own making
_POSTMASTER_DIED = "postmaster exit"  # FATAL 57P01 as well: backends that find their postmaster killed


def spells(outage: Outage) -> dict[str, Downtime]:
    """What was out: any of connect, read and write."""
    named = {"connect": outage.connect, "read": outage.read, "write": outage.write}
    return {name: spell for name, spell in named.items() if spell is not None}


def over(outage: Outage) -> bool:
    """Whether the record is that of an outage that has ended."""
    return all(spell.ended is not None for spell in spells(outage).values())


def found_over(outage: Outage, at: float, *, writable: bool) -> Outage:
    """The record of an outage nobody watched to its end, when the database is found well `at` that time (wall clock).

    What is still open ended at some time since it began; writing only if it is `writable`.
    """

    def ended(spell: Downtime | None) -> Downtime | None:
        if spell is None or spell.ended is not None:
            return spell
        return replace(spell, ended=Interval(after=spell.began.until, until=max(at, spell.began.until)), watched=False)

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


def reconciled(outage: Outage, before: Outage | None, *, is_lifetime_expiry: bool) -> Outage | None:
    """The record to keep, `before` being the version kept so far; None where that says the same.

    `is_lifetime_expiry` tells that the session lost was one of several that died at one age. Such a kind stays: a later
    version of the record knows no more of that than the first.
    """
    if is_lifetime_expiry or (before is not None and before.kind == OutageKind.LIFETIME):
        outage = of_age(outage)
    return None if outage == before else outage


def just_over(outage: Outage, before: Outage | None) -> bool:
    """Whether it is with this version that the outage is known to be over."""
    return over(outage) and (before is None or not over(before))


@dataclass(slots=True)
class Span:
    """A spell in the making, in monotonic seconds. `bad_at` is when it was last known to be bad."""

    began: tuple[float, float]
    bad_at: float
    ended: tuple[float, float] | None = None

    def bad(self, at: float) -> None:
        """It was bad when asked `at` that time; if it seemed to have ended, it had not."""
        self.bad_at = max(self.bad_at, at)
        self.ended = None

    def good(self, at: float) -> None:
        """It is good again, known `at` that time."""
        if self.ended is None:
            self.ended = (min(self.bad_at, at), at)


def spoil(span: Span | None, began: tuple[float, float], bad_at: float) -> Span:
    """The span, bad (again); a new one with this beginning if there was none."""
    if span is None:
        return Span(began, bad_at)
    span.bad(bad_at)
    return span


@dataclass(slots=True, kw_only=True)
class OngoingOutage:
    """An outage in the making. `offset` is wall clock minus monotonic time, one for the whole record."""

    id: str
    target: str
    offset: float
    before: Identity | None
    addresses_before: tuple[str, ...]
    flipped: bool = False  # it began with a living session that could no longer write
    connect: Span | None = None
    read: Span | None = None
    write: Span | None = None
    ending: Ending | None = None  # of the first session lost
    after: Identity | None = None
    addresses_after: tuple[str, ...] = ()
    dns_changed: tuple[float, float] | None = None
    refusals: Counter[str] = field(default_factory=Counter)  # attempts that a server at work refused, by SQLSTATE
    failures: Counter[str] = field(default_factory=Counter)  # attempts that found none at work, by SQLSTATE or error
    endings: Counter[str] = field(default_factory=Counter)  # sessions lost, by SQLSTATE
    lost: Counter[str] = field(default_factory=Counter)

    def session_lost(self, ending: Ending) -> None:
        self.ending = self.ending or ending
        self.lost[ending.death] += 1
        if ending.sqlstate is not None:
            self.endings[ending.sqlstate] += 1

    def attempt_failed(self, sqlstate: str | None, name: str) -> None:
        if sqlstate is None or sqlstate in STOPPING or sqlstate.startswith(_CONNECTION_EXCEPTION):
            self.failures[sqlstate or name] += 1
        else:
            self.refusals[sqlstate] += 1

    def renamed(self, addresses: tuple[str, ...], when: tuple[float, float] | None) -> None:
        """The name now leads to these addresses, since some time in that interval."""
        self.dns_changed = when if self.addresses_before and addresses != self.addresses_before else None

    @property
    def move(self) -> str | None:
        """In which respect another server answers now; None if it is the same, as far as can be told."""
        if self.before is None or self.after is None:
            return None
        return _move(self.before, self.after)

    @property
    def one_session_only(self) -> bool:
        """Whether the server that answers now never went away, and nobody else noticed anything."""
        same_life = None not in (self.before, self.after) and self.move is None and not _restarted(self)
        return same_life and self.lost.total() == 1 and not self.failures and not self.refusals

    @property
    def spans(self) -> tuple[Span, ...]:
        return tuple(span for span in (self.connect, self.read, self.write) if span is not None)

    @property
    def began(self) -> float:
        """When it was first known to be bad."""
        return min(span.began[1] for span in self.spans)

    @property
    def over(self) -> bool:
        return all(span.ended is not None for span in self.spans)

    def outage(self) -> Outage:
        """The record as far as it is known."""
        kind, detail = classify(self)
        return Outage(
            id=self.id,
            target=self.target,
            kind=kind,
            detail=detail,
            connect=self._spell(self.connect),
            read=self._spell(self.read),
            write=self._spell(self.write),
            before=self.before,
            after=self.after,
            addresses_before=self.addresses_before,
            addresses_after=self.addresses_after,
            dns_changed=None if self.dns_changed is None else self._interval(self.dns_changed),
            connections_lost={str(loss): count for loss, count in self.lost.items()},
            errors=dict(self.endings + self.refusals + self.failures),
        )

    def _spell(self, span: Span | None) -> Downtime | None:
        return None if span is None else Downtime(
            began=self._interval(span.began), ended=None if span.ended is None else self._interval(span.ended)
        )  # fmt: skip

    def _interval(self, times: tuple[float, float]) -> Interval:
        return Interval(after=times[0] + self.offset, until=times[1] + self.offset)


def classify(trouble: OngoingOutage) -> tuple[OutageKind, str | None]:
    """Kind and detail of an outage (see the module and `Outage`)."""
    ending, after = trouble.ending, trouble.after
    if trouble.flipped:
        return OutageKind.ROLE_FLIP, None
    if trouble.move is not None:
        return (OutageKind.SWITCHOVER if _manner(ending) == "fast" else OutageKind.FAILOVER), trouble.move
    if _restarted(trouble):
        return OutageKind.RESTART, _manner(ending)
    if trouble.refusals and trouble.refusals.total() >= trouble.failures.total():
        sqlstate = trouble.refusals.most_common(1)[0][0]
        return (OutageKind.AUTHENTICATION if sqlstate.startswith("28") else OutageKind.REFUSAL), sqlstate
    failure = next((name for name, _ in trouble.failures.most_common(1)), None)
    if failure in _NO_TRUST:
        return OutageKind.AUTHENTICATION, failure
    if ending is not None and ending.death is Death.SILENT:
        return OutageKind.PARTITION, "silent" if trouble.failures else "this connection only"
    if after is not None and failure is not None:
        return OutageKind.PARTITION, failure
    if after is not None and ending is not None:
        return OutageKind.CULL, ending.sqlstate or ending.signal
    return OutageKind.UNKNOWN, None


def _move(before: Identity, after: Identity) -> str | None:
    if before.started_at is not None and before.started_at == after.started_at:
        return None  # one life of one server, by whatever address it was reached
    if _differ(before.system_identifier, after.system_identifier):
        return "another cluster"
    # Only ever upwards: what a server tells of its timeline may lag behind a promotion until its next checkpoint.
    if before.timeline is not None and after.timeline is not None and before.timeline < after.timeline:
        return f"timeline {before.timeline} to {after.timeline}"
    return "another server" if _differ(before.address, after.address) else None


def _differ(one: str | None, other: str | None) -> bool:
    return None not in (one, other) and one != other


def _restarted(trouble: OngoingOutage) -> bool:
    """Whether the server began a new life, or at least ended all sessions and recovered."""
    before, after, ending = trouble.before, trouble.after, trouble.ending
    said = None if ending is None else ending.sqlstate
    if CANNOT_CONNECT_NOW in trouble.failures or said == CRASH_SHUTDOWN:
        return True
    if before is None or after is None or None in (before.started_at, after.started_at):
        return said == ADMIN_SHUTDOWN and (after is None or bool(trouble.failures))
    return before.started_at != after.started_at


def _manner(ending: Ending | None) -> str | None:
    """How a server stopped: fast | immediate | crash | silent. None where it cannot be told."""
    if ending is None:
        return None
    if ending.death is Death.SILENT:
        return "silent"
    if ending.sqlstate == ADMIN_SHUTDOWN and _POSTMASTER_DIED not in (ending.message or ""):
        return "fast" if ending.severity == "FATAL" else "immediate"
    return "crash" if ending.sqlstate in (None, ADMIN_SHUTDOWN, CRASH_SHUTDOWN) else None
