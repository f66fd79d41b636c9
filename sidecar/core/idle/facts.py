"""What the shell tells the idle-limit machine: facts, observed at a time, never interpreted.

Times called `now` are monotonic seconds, handed to the machines beside the fact. Wall-clock times, where a record
must outlive the process, end in `_at` and are seconds since the Unix epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.evidence import Aged, Disturbed, Ending
from sidecar.core.identity import Identity
from sidecar.core.signals import ServerSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A probe connection is open and has answered its first query.

    One that was to ask nothing is only logged in: its identity is nobody's.
    """

    connection: int
    identity: Identity
    seconds: float  # what opening took


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFailed:
    """A probe connection could not be opened. `said` is None when no server answered at all."""

    connection: int
    error: str
    said: ServerSignal | None = None


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
class ClockSet:
    """The wall clock was set: this is how far it is ahead of the monotonic clock now, in seconds."""

    offset_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Pooled:
    """A pooler stands before the server, for good. With `transaction` it gives each transaction another session."""

    transaction: bool = False


Fact = Opened | OpenFailed | Survived | Died | Aged | Disturbed | ClockSet | Pooled
