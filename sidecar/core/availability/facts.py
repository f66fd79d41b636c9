"""What the shell tells the availability machine: facts, observed at a time, never interpreted.

Fields called `at` are wall-clock seconds since the Unix epoch; all other times are monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.evidence import Ending
from sidecar.core.identity import Identity
from sidecar.core.signals import ServerSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatAnswered:
    """The session answered a beat."""

    at: float  # wall clock


@dataclass(frozen=True, slots=True, kw_only=True)
class TableAnswered:
    """Whoever was asked who holds the server's sessions has answered, with the table or by a refusal to show it."""

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
class LoggedIn:
    """The login of an attempt went through; its first question has not been answered yet."""

    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """An attempt has logged in, has not been answered within the deadline, and goes on waiting.

    A pooler does not notice that somebody has left its queue, so it is better to wait there than to come again.
    """

    attempt: int
    error: str  # fit for operators


@dataclass(frozen=True, slots=True, kw_only=True)
class Connected:
    """An attempt succeeded: a fresh connection has answered its first query.

    `pooled` is whether a pooler stands between, as far as can be told.
    """

    attempt: int
    at: float  # wall clock
    identity: Identity
    addresses: tuple[str, ...] = ()  # all the name resolved to, sorted
    tells_role: bool = True  # the server reports a change of role unasked (PostgreSQL 14+, no pooler between)
    pooled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NotConnected:
    """An attempt failed. `error` is fit for operators; `name` is that of the error where there is no SQLSTATE.

    `said` is what the server meant by its refusal, `sqlstate` how it put it; both are None when no server answered.
    `hung` where nobody did so within the deadline.
    """

    attempt: int
    error: str
    name: str
    said: ServerSignal | None = None
    sqlstate: str | None = None
    hung: bool = False


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


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialsChanged:
    """What we log in with was replaced: the next attempt may fare better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend:
    """Hold no connection. With `looks` a short one may come by now and then; without, nothing is opened at all."""

    looks: bool


@dataclass(frozen=True, slots=True)
class Resume:
    """Hold a connection again."""


Fact = (
    BeatAnswered
    | TableAnswered
    | WriteAnswered
    | SessionEnded
    | RoleChanged
    | Resolved
    | LoggedIn
    | Waits
    | Connected
    | NotConnected
    | PooledLost
    | Suspected
    | AgeKnown
    | CredentialsChanged
    | Suspend
    | Resume
)
