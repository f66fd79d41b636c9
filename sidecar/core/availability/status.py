"""What the availability machine tells of itself at a given time."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.availability.states import State
from sidecar.core.signals import ServerSignal


@dataclass(frozen=True, slots=True, kw_only=True)
class AvailabilityStatus:
    """How things stand."""

    state: State
    since_at: float  # wall clock
    reachable: bool | None  # the session lives; None until first tried
    writable: bool | None  # None while not known
    writes_expected: bool = False  # writing was possible before, so that not being able to is a fault
    out_since_at: float | None = None  # wall clock: since when the outage lasts, or the wait for the first contact
    out_seconds: float | None = None  # how long that is
    kind: str | None = None  # of the outage under way, as far as can be told
    error: str | None = None  # the latest of that time, without secrets
    said: ServerSignal | None = None  # what the server meant by that error; None where no server spoke
    sqlstate: str | None = None  # of that error
    latency_seconds: float | None = None  # of the last answer
    met: bool = False  # somebody has answered since this process began
    suspended: bool = False  # no session is wanted; `reachable` is what the last look found
    paused: bool = False  # suspended, and not looked at either
    refused: ServerSignal | None = None  # what the last attempt was refused with; None once another answer came
    queued: bool = False  # the last attempt waited in vain behind others, in a pooler's queue
    exhausted: bool = False  # the last attempt failed because we had nothing left to open a connection with
