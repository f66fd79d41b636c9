"""What the idle-limit machine tells the shell to do, and what it may spend."""

from __future__ import annotations

from dataclasses import dataclass

from sidecar.core.evidence import Keepalive, Observation


@dataclass(frozen=True, slots=True, kw_only=True)
class Open:
    """Open a probe connection after a pause (the shell adds jitter), then report Opened or OpenFailed.

    With `ask` its first question is asked before it rests; otherwise it is only logged in, and nobody is known to have
    answered. Its session is to be ended by the server itself after a rest of `rest_at_most_seconds`, so that nothing
    stays behind where it dies unseen; None where nothing may be set.
    """

    connection: int
    after_seconds: float
    keepalive: Keepalive | None = None  # TCP keepalive to switch on; off it must be otherwise
    ask: bool = True
    rest_at_most_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """Use a rested connection once, then report Survived or Died."""

    connection: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Close:
    """Drop a connection at once. Nothing is reported."""

    connection: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Keep this observation. One recorded before under the same id is replaced: it has been judged anew."""

    observation: Observation


Command = Open | Use | Close | Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """How many connections the target can spare now; fewer than 2 pause the measurement."""

    connections: int
