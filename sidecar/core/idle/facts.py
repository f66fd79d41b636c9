"""What the shell tells the idle-limit machine: facts, observed at a time, never interpreted.

Times called `now` are monotonic seconds, handed to the machines beside the fact. Wall-clock times, where a record
must outlive the process, end in `_at` and are seconds since the Unix epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.evidence import Aged, Disturbed, Ending
from sidecar.core.identity import Identity


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
class ClockSet:
    """The wall clock was set. `offset_seconds` is what turns `now` into wall-clock seconds from here on."""

    offset_seconds: float


Fact = Opened | OpenFailed | Survived | Died | Aged | Disturbed | ClockSet
