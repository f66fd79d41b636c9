"""What PostgreSQL is asked, and what its answers mean.

All of it is asked under the simple protocol, so that a transaction pooler may give each query another server, and none
of it needs a privilege. Rows come as text, as they went over the wire; no row at all is a refusal.
"""

from __future__ import annotations

from typing import TypeAlias

from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import Declared
from sidecar.core.identity import Identity
from sidecar.probes.driver import APPLICATION, WriteAnswer

Row: TypeAlias = tuple[str | None, ...]

_IDENTITY = (
    "SELECT pg_backend_pid(), extract(epoch from pg_postmaster_start_time()), host(inet_server_addr()),"
    " inet_server_port(), pg_is_in_recovery(), current_setting('default_transaction_read_only')"
)
IDENTITY = (
    _IDENTITY + ", s.system_identifier, c.timeline_id FROM pg_control_system() s, pg_control_checkpoint() c",
    _IDENTITY + ", NULL, NULL",
)
"""Everything that can be known of a server without privileges. The second form is for servers that lack, or refuse, the
control functions (poolers' consoles, PostgreSQL-compatible databases)."""

BEAT = "SELECT 1"

# `pg_current_xact_id()` takes a transaction id, which only a server that takes writes can do; it would do so in a
# transaction set read-only, too. The timeline in a WAL file's name is up to date, while the one of the last checkpoint
# lags behind a promotion.
_XID = "CASE current_setting('transaction_read_only') WHEN 'off' THEN pg_current_xact_id()::text END"
_TIMELINE = "CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END"
WRITE_CHECKS = (
    f"SELECT {_XID}, {_TIMELINE}",
    f"SELECT {_XID}, NULL",
    "SELECT CASE current_setting('transaction_read_only') WHEN 'off' THEN 'unproven' END, NULL",
)
"""A transaction id where writes are taken, and the timeline where it can be told. The first form that the server does
not refuse counts; and to refuse it for being read-only is an answer."""

READ_ONLY_TRANSACTION = "25006"
"""SQLSTATE read_only_sql_transaction. Source: PostgreSQL, appendix A."""

# Timeouts come in the unit pg_settings names (ms or s); a setting the server does not have yields NULL. A superuser's
# reserve and that of pg_use_reserved_connections are not for us.
DECLARED = """
SELECT current_setting('server_version'),
 (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'idle_session_timeout'),
 (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'),
 (SELECT setting::float8 FROM pg_settings WHERE name = 'tcp_keepalives_idle'),
 current_setting('max_connections'),
 (SELECT sum(setting::int) FROM pg_settings WHERE name IN ('superuser_reserved_connections', 'reserved_connections')),
 (SELECT sum(numbackends) FROM pg_stat_database),
 pg_is_in_recovery()
"""

# The application's sessions: our own role's, from where we come from, because a sidecar shares its address with the
# application. A role may always see its own sessions.
ACTIVITY = f"""
SELECT count(*) FILTER (WHERE state = 'active'), count(*) FILTER (WHERE state = 'idle'),
 count(*) FILTER (WHERE state LIKE 'idle in transaction%'),
 extract(epoch FROM max(now() - state_change) FILTER (WHERE state = 'idle')),
 extract(epoch FROM max(now() - backend_start)),
 extract(epoch FROM max(now() - state_change) FILTER (WHERE state LIKE 'idle in transaction%'))
FROM pg_stat_activity
WHERE usename = current_user AND datname = current_database() AND client_addr IS NOT DISTINCT FROM inet_client_addr()
 AND application_name NOT LIKE '{APPLICATION}/%'
"""  # noqa: S608 - a constant


def identity(row: Row | None) -> Identity:
    """Who answered; nobody known where the server refused."""
    if row is None:
        return Identity()
    pid, started_at, address, port, in_recovery, _read_only, system_identifier, timeline = row
    return Identity(
        address=None if address is None else f"{address}:{port}",
        started_at=_float(started_at),
        system_identifier=system_identifier,
        timeline=_int(timeline),
        in_recovery=_bool(in_recovery),
        backend_pid=_int(pid),
    )


def write_answer(row: Row | None) -> WriteAnswer:
    xid, timeline = row or (None, None)
    return WriteAnswer(writable=xid is not None, timeline=None if timeline is None else int(timeline, base=16))


def declared(row: Row | None) -> Declared | None:
    if row is None:
        return None
    version, idle, idle_in_transaction, keepalive, most, reserved, used, in_recovery = row
    return Declared(
        server_version=version,
        idle_session_timeout=_float(idle),
        idle_in_transaction_timeout=_float(idle_in_transaction),
        tcp_keepalives_idle=_float(keepalive),
        max_connections=_int(most),
        reserved_connections=_int(reserved),
        used_connections=_int(used),
        in_recovery=_bool(in_recovery),
    )


def activity(row: Row | None) -> Activity | None:
    if row is None:
        return None
    active, idle, in_transaction, longest_idle, oldest, longest_in_transaction = row
    return Activity(
        connections={
            "active": _int(active) or 0,
            "idle": _int(idle) or 0,
            "idle_in_transaction": _int(in_transaction) or 0,
        },
        longest_idle_seconds=_float(longest_idle),
        oldest_seconds=_float(oldest),
        longest_idle_in_transaction_seconds=_float(longest_in_transaction),
    )


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)


def _bool(text: str | None) -> bool | None:
    return None if text is None else text == "t"
