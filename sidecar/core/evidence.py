"""The durable records: what was observed, in a form that outlives the process and can be shown to people.

The evidence *is* the state: the limit published is computed from the observations of the current regime, so a
restarted sidecar that reads them back knows what its predecessor knew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from sidecar.core.identity import Identity
from sidecar.core.signals import ServerSignal


class Death(StrEnum):
    """How a connection's end showed itself."""

    SILENT = "silent"  # nothing until used, then nothing
    RESET_ON_USE = "reset_on_use"  # nothing until used, then RST (or FIN)
    CLOSED = "closed"  # FIN or RST while it rested
    FATAL = "fatal"  # the server or a pooler said why, then closed

    @property
    def visible(self) -> bool:
        """Whether it shows by itself, at the moment it happens."""
        return self in (Death.CLOSED, Death.FATAL)


class Cause(StrEnum):
    """Why a connection ended. Only the first two testify about a limit."""

    IDLE_LIMIT = "idle_limit"
    LIFETIME_LIMIT = "lifetime_limit"
    RESTART = "restart"
    FAILOVER = "failover"
    CULL = "cull"
    PARTITION = "partition"
    UNKNOWN = "unknown"

    @property
    def testifies(self) -> bool:
        return self in (Cause.IDLE_LIMIT, Cause.LIFETIME_LIMIT)


class Status(StrEnum):
    """How far the evidence reaches."""

    MEASURING = "measuring"  # no limit found yet
    PROVISIONAL = "provisional"  # a bracket, from one chain of witnesses
    CONFIRMED = "confirmed"  # a second, independent death at the same idle time
    VERIFIED = "verified"  # a whole volley of fresh connections agreed


MILESTONES = (Status.PROVISIONAL, Status.CONFIRMED, Status.VERIFIED)
"""What evidence reaches, one after the other."""


class Outcome(StrEnum):
    """What one rest of one connection says."""

    SURVIVED = "survived"
    DIED = "died"
    CENSORED = "censored"  # something else ended it: it says nothing


class Arm(StrEnum):
    """What a connection is open for."""

    SEARCH = "search"
    SENTINEL = "sentinel"
    CONFIRM = "confirm"
    VOLLEY = "volley"
    GUARD = "guard"
    RULER = "ruler"
    KEEPALIVE = "keepalive"
    LIFETIME = "lifetime"


class Noticed(StrEnum):
    """What found a connection's end."""

    READING = "reading"  # at once, while it rested
    USING = "using"  # an answer to use: RST, FIN or an error
    DEADLINE = "deadline"  # use got no answer at all


class OutageKind(StrEnum):
    """What kind of disturbance an outage was."""

    RESTART = "restart"
    FAILOVER = "failover"
    SWITCHOVER = "switchover"
    CULL = "cull"
    PARTITION = "partition"
    REFUSAL = "refusal"
    AUTHENTICATION = "authentication"
    ROLE_FLIP = "role_flip"
    LIFETIME = "lifetime"  # no more than one session's end at the age at which all end on that path
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Everything seen when a connection ended.

    `noticed` tells what found it: `reading` (at once, while it rested), `using` (an answer to use: RST, FIN or an
    error) or `deadline` (use got no answer at all). `said` is what the server meant by its last words, which follow as
    it put them; all are None where it said nothing. `own_limit`: it was the idle_session_timeout that we had set for
    this session ourselves, so that nothing of ours stays behind: it testifies to nothing.
    """

    noticed: Noticed
    signal: str | None = None  # "fin", "rst", or None when nothing arrived
    said: ServerSignal | None = None
    severity: str | None = None  # "FATAL", "WARNING", … of the message that came before the end
    sqlstate: str | None = None
    message: str | None = None
    own_limit: bool = False

    @property
    def death(self) -> Death:
        """The kind of death this is (see `Death`)."""
        if self.noticed == Noticed.DEADLINE:
            return Death.SILENT
        if self.said is not None:
            return Death.FATAL
        return Death.CLOSED if self.noticed == Noticed.READING else Death.RESET_ON_USE


@dataclass(frozen=True, slots=True, kw_only=True)
class Keepalive:
    """TCP keepalive, in seconds and probes: TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT."""

    idle: int
    interval: int
    count: int


STALE_WRITER = "stale_writer"
"""A connection lost to writing: it lives and answers, and its server takes no writes any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One rest of one connection, ended by use, by death, or without testimony (censored)."""

    id: str  # unique over restarts: "<run>-<serial>"; storing the same one twice is harmless
    target: str
    at: float  # wall clock, seconds since the epoch
    regime: int  # counts up whenever new evidence contradicts what was held true
    arm: Arm
    outcome: Outcome
    idle_seconds: float
    age_seconds: float
    death: Death | None = None
    cause: Cause | None = None
    sqlstate: str | None = None
    message: str | None = None
    identity: Identity = field(default_factory=Identity)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An instant known only to lie between two wall-clock times: `after` < instant <= `until`."""

    after: float
    until: float

    @property
    def width_seconds(self) -> float:
        return self.until - self.after


@dataclass(frozen=True, slots=True, kw_only=True)
class Downtime:
    """A time in which something (connecting, reading, writing) was not possible. `ended` is None while it lasts.

    `watched` is False where the sidecar was away when it ended: it was over at the next contact, and how long before is
    anybody's guess.
    """

    began: Interval
    ended: Interval | None = None
    watched: bool = True

    @property
    def shortest_seconds(self) -> float | None:
        return None if self.ended is None else max(0.0, self.ended.after - self.began.until)

    @property
    def longest_seconds(self) -> float | None:
        return None if self.ended is None else self.ended.until - self.began.after

    @property
    def middle_seconds(self) -> float | None:
        """Between shortest and longest: the least wrong single number. None where any would be wrong."""
        shortest, longest = self.shortest_seconds, self.longest_seconds
        return None if shortest is None or longest is None or not self.watched else (shortest + longest) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """One disturbance of a target: a restart, a failover, a cull, a partition, a refusal, …

    The same `id` may be stored again as more becomes known; the last version counts.
    """

    id: str
    target: str
    kind: OutageKind
    detail: str | None = None  # fast | immediate | crash | … where it can be told
    connect: Downtime | None = None
    read: Downtime | None = None
    write: Downtime | None = None
    before: Identity | None = None
    after: Identity | None = None
    addresses_before: tuple[str, ...] = ()
    addresses_after: tuple[str, ...] = ()
    dns_changed: Interval | None = None  # when the name came to lead to other addresses, where it did
    connections_lost: Mapping[str, int] = field(default_factory=dict)  # by kind of death, or STALE_WRITER
    errors: Mapping[str, int] = field(default_factory=dict)  # by SQLSTATE, or by error name where there is none

    @property
    def downtimes(self) -> Mapping[str, Downtime]:
        """What was out: any of connect, read and write."""
        named = {"connect": self.connect, "read": self.read, "write": self.write}
        return {name: downtime for name, downtime in named.items() if downtime is not None}

    @property
    def dns_lag_seconds(self) -> float | None:
        """For how long the name led to the old address after the outage had begun: the middle of what is possible.

        None where it always led to the same one, or nobody looked.
        """
        if self.dns_changed is None:
            return None
        began = min((downtime.began for downtime in self.downtimes.values()), key=lambda interval: interval.until)
        shortest = max(0.0, self.dns_changed.after - began.until)
        return (shortest + max(0.0, self.dns_changed.until - began.after)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Aged:
    """How old a busy connection got that has ended. It answered at `lived_seconds` and was gone at `age_seconds`.

    `outage` is the id under which its end was recorded.
    """

    outage: str
    lived_seconds: float
    age_seconds: float
    ending: Ending
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbed:
    """Someone else saw the database restart, move or vanish: connections open at that time testify to nothing.

    `aged` is the one connection whose end is all that was seen so far, if it was no more than that.
    """

    cause: Cause
    aged: Aged | None = None
