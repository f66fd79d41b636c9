"""What PostgreSQL, and PgBouncer before it, mean by their SQLSTATEs.

The codes are those of PostgreSQL's appendix "Error Codes"; of a class, its first two characters, all are meant. Twice
one code says two things, and only the words tell which: PgBouncer uses 08P01 (protocol_violation) for all it has to
say, and sessions that find their postmaster killed end with the code of an ordered stop. PgBouncer speaks English only;
a server that speaks another language leaves it at the ordered stop.
"""

from __future__ import annotations

from sidecar.core.signals import ServerSignal

_MEANINGS = (
    # the code or its class, words of the message, what is meant; the first that fits
    ("08P01", "idle_timeout", ServerSignal.IDLE_TIMEOUT),  # PgBouncer's client_idle_timeout
    ("08P01", "no more connections allowed", ServerSignal.FULL),  # PgBouncer's max_client_conn, before it had 53300
    ("08P01", "no such database", ServerSignal.NO_DATABASE),
    ("08P01", "no such user", ServerSignal.LOGIN_REFUSED),
    ("08P01", "auth failed", ServerSignal.LOGIN_REFUSED),
    ("08P01", "bouncer config error", ServerSignal.UNKNOWN),
    ("08P01", "query_wait_timeout", ServerSignal.QUEUED),  # PgBouncer: no server connection became free in time
    ("08", "", ServerSignal.UNREACHABLE),  # connection exception
    ("25006", "", ServerSignal.READ_ONLY),  # read_only_sql_transaction
    ("25P03", "", ServerSignal.IN_TRANSACTION_TIMEOUT),  # idle_in_transaction_session_timeout
    ("25P04", "", ServerSignal.IN_TRANSACTION_TIMEOUT),  # transaction_timeout, since PostgreSQL 17
    ("28", "", ServerSignal.LOGIN_REFUSED),  # invalid authorization specification
    ("3D", "", ServerSignal.NO_DATABASE),  # invalid catalog name
    ("53", "", ServerSignal.FULL),  # insufficient resources: too_many_connections, mostly
    ("57P01", "postmaster exit", ServerSignal.ORPHANED),  # "terminating connection due to unexpected postmaster exit"
    ("57P01", "", ServerSignal.STOPPING),  # admin_shutdown
    ("57P02", "", ServerSignal.CRASHED),  # crash_shutdown
    ("57P03", "", ServerSignal.STARTING),  # cannot_connect_now
    ("57P05", "", ServerSignal.IDLE_TIMEOUT),  # idle_session_timeout
)


def signal_of(sqlstate: str | None, message: str | None = None) -> ServerSignal | None:
    """What is meant by this code, given with this message; None where there is no code, because no server spoke."""
    if sqlstate is None:
        return None
    return next(
        (signal for code, words, signal in _MEANINGS if sqlstate.startswith(code) and words in (message or "")),
        ServerSignal.UNKNOWN,
    )
