"""What the shell tells the core: facts, observed at a time, never interpreted.

Times called `now` are monotonic seconds, handed to the machines beside the fact. Wall-clock times, where a record
must outlive the process, end in `_at` and are seconds since the Unix epoch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Which server answered, as far as it can be known without privileges.

    Two answers come from the same life of the same server when `key` is equal.
    """

    address: str | None = None  # inet_server_addr():port, as the server sees itself
    started_at: float | None = None  # pg_postmaster_start_time()
    system_identifier: str | None = None
    timeline: int | None = None
    in_recovery: bool | None = None
    backend_pid: int | None = None  # of the backend that answered; a change on one connection betrays a pooler

    @property
    def key(self) -> tuple[str | None, float | None]:
        return (self.address, self.started_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Everything seen when a connection ended.

    `noticed` tells what found it: `reading` (at once, while it rested), `using` (an answer to use: RST, FIN or an
    error) or `deadline` (use got no answer at all).
    """

    noticed: str
    signal: str | None = None  # "fin", "rst", or None when nothing arrived
    severity: str | None = None  # "FATAL", "WARNING", … of the message that came before the end
    sqlstate: str | None = None
    message: str | None = None

    @property
    def death(self) -> Death:
        """The kind of death this is (see `Death`)."""
        if self.noticed == "deadline":
            return Death.SILENT
        if self.sqlstate is not None:
            return Death.FATAL
        return Death.CLOSED if self.noticed == "reading" else Death.RESET_ON_USE


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A probe connection is open and has answered its first query."""

    connection: int
    identity: Identity
    seconds: float  # what opening took


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFailed:
    """A probe connection could not be opened. `sqlstate` is None when no server answered at all."""

    connection: int
    error: str
    sqlstate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Survived:
    """A rested connection was used and answered."""

    connection: int
    idle_seconds: float  # how long it really rested: the wish plus any lateness of the timer
    seconds: float  # what the answer took
    identity: Identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """A connection ended, at rest or in use."""

    connection: int
    idle_seconds: float  # since its last use
    age_seconds: float  # since it was opened
    ending: Ending


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


Fact = Opened | OpenFailed | Survived | Died | Aged | Disturbed
