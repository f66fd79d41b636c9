"""Ends of connections as PostgreSQL words them: the codes are written down, what they mean is looked up."""

from __future__ import annotations

from sidecar.core.evidence import Ending, Noticed
from sidecar.probes.postgresql.signals import signal_of


def ending(
    noticed: Noticed,
    *,
    signal: str | None = None,
    severity: str | None = None,
    sqlstate: str | None = None,
    message: str | None = None,
) -> Ending:
    """What would be seen of this end on the wire."""
    said = signal_of(sqlstate, message)
    return Ending(noticed=noticed, signal=signal, said=said, severity=severity, sqlstate=sqlstate, message=message)


def fatal(sqlstate: str, message: str = "", *, noticed: Noticed = Noticed.READING) -> Ending:
    """The server says why in a FATAL message, then closes."""
    return ending(noticed, signal="fin", severity="FATAL", sqlstate=sqlstate, message=message)
