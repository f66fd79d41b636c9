"""What PostgreSQL is asked, and what its answers mean.

All of it is asked under the simple protocol, so that a transaction pooler may give each query another server, and none
of it needs a privilege. Rows come as text, as they went over the wire; no row at all is a refusal. Where there are
several forms of a question, the first that the server does not refuse counts.

The last column of every answer is the server's own time, and not for us to read here: of a session that we lost without
the server's knowledge it tells until when whatever it did was done by us (see `TERMINATE`).
"""

from __future__ import annotations

from typing import TypeAlias

from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import APPLICATION, Declared, LeftSession
from sidecar.core.identity import Identity
from sidecar.probes.driver import WriteAnswer
from sidecar.probes.postgresql import sessions

Row: TypeAlias = tuple[str | None, ...]

_TIME = "extract(epoch FROM clock_timestamp())"

_IDENTITY = (
    "SELECT pg_backend_pid(), extract(epoch from pg_postmaster_start_time()), host(inet_server_addr()),"
    " inet_server_port(), pg_is_in_recovery(), current_setting('default_transaction_read_only')"
)
IDENTITY = (
    f"{_IDENTITY}, s.system_identifier, c.timeline_id, {_TIME} FROM pg_control_system() s, pg_control_checkpoint() c",
    f"{_IDENTITY}, NULL, NULL, {_TIME}",
)
"""Everything that can be known of a server without privileges. The second form is for servers that lack, or refuse, the
control functions (poolers' consoles, PostgreSQL-compatible databases)."""

BEAT = (f"SELECT 1, {_TIME}", "SELECT 1, NULL")
"""Proof of life; the second form is for servers that know PostgreSQL's protocol, but not its functions."""

# `pg_current_xact_id()` takes a transaction id, which only a server that takes writes can do; it would do so in a
# transaction set read-only, too. The timeline in a WAL file's name is up to date, while the one of the last checkpoint
# lags behind a promotion.
_XID = "CASE current_setting('transaction_read_only') WHEN 'off' THEN pg_current_xact_id()::text END"
_TIMELINE = "CASE WHEN NOT pg_is_in_recovery() THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END"
WRITE_CHECKS = (
    f"SELECT {_XID}, {_TIMELINE}, {_TIME}",
    f"SELECT {_XID}, NULL, {_TIME}",
    f"SELECT CASE current_setting('transaction_read_only') WHEN 'off' THEN 'unproven' END, NULL, {_TIME}",
)
"""A transaction id where writes are taken, and the timeline where it can be told. The first form that the server does
not refuse counts; and to refuse it for being read-only is an answer."""

READ_ONLY_TRANSACTION = "25006"
"""SQLSTATE read_only_sql_transaction. Source: PostgreSQL, appendix A."""

PASSING = ("25", "40", "53", "55", "57")
"""Classes of SQLSTATE with which a server refuses a statement for the moment only: the state of the transaction or of
an object, want of resources, an operator's or a timeout's intervention. Source: PostgreSQL, appendix A."""

# Timeouts come in the unit pg_settings names (ms or s); a setting the server does not have yields NULL. A superuser's
# reserve and that of pg_use_reserved_connections are not for us. What is declared is what `RESET` would bring back:
# this session's own setting may be ours (see `limits_of_rest`).
DECLARED = f"""
SELECT current_setting('server_version'),
 (SELECT reset_val::float8 / 1000 FROM pg_settings WHERE name = 'idle_session_timeout'),
 (SELECT setting::float8 / 1000 FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout'),
 (SELECT setting::float8 FROM pg_settings WHERE name = 'tcp_keepalives_idle'),
 current_setting('max_connections'),
 (SELECT sum(setting::int) FROM pg_settings WHERE name IN ('superuser_reserved_connections', 'reserved_connections')),
 (SELECT sum(numbackends) FROM pg_stat_database),
 pg_is_in_recovery(), {_TIME}
"""  # noqa: S608 - constants

# The application's sessions: our own role's, and first those from where we come from, because a sidecar shares its
# address with the application. A role may always see its own sessions, but not how long they have rested where the
# server keeps no account of states (track_activities). Parallel workers are no sessions.
_ACTIVITY = """
WITH sessions AS (
  SELECT state, state_change, backend_start, client_addr IS NOT DISTINCT FROM inet_client_addr() AS here,
   backend_type = 'client backend' AS whole
  FROM {activity}
  WHERE usesysid = (SELECT oid FROM pg_roles WHERE rolname = session_user)
   AND datid = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND application_name NOT LIKE '{prefix}/%'
)
SELECT count(*) FILTER (WHERE here AND state = 'active'), count(*) FILTER (WHERE here AND state = 'idle'),
 count(*) FILTER (WHERE here AND state LIKE 'idle in transaction%'),
 extract(epoch FROM max(now() - state_change) FILTER (WHERE here AND state = 'idle')),
 extract(epoch FROM max(now() - backend_start) FILTER (WHERE here)),
 extract(epoch FROM max(now() - state_change) FILTER (WHERE here AND state LIKE 'idle in transaction%')),
 count(*) FILTER (WHERE whole),
 CASE WHEN bool_or(state = 'disabled') THEN NULL ELSE count(*) FILTER (WHERE whole AND state = 'idle') END,
 extract(epoch FROM max(now() - state_change) FILTER (WHERE whole AND state = 'idle')),
 {time}
FROM sessions
"""
ACTIVITY = tuple(_ACTIVITY.format(activity=each, prefix=APPLICATION, time=_TIME) for each in sessions.FROM)

SESSIONS = tuple(
    f"SELECT looked.*, {_TIME} FROM ({query}) looked"  # noqa: S608 - constants
    for query in sessions.queries(APPLICATION)
)
"""See `sidecar.probes.postgresql.sessions`."""

LONGEST_TIMEOUT_MS = 2**31 - 1
"""Milliseconds: the greatest value of idle_session_timeout. Source: PostgreSQL, guc_parameters."""

# `reset_val` is what the server, the database and the role declare for this session; it follows a changed and reloaded
# configuration even while our own value holds. Setting NULL is RESET. Behind a pooler another backend answers than that
# of the handshake: then nothing is set. Servers before PostgreSQL 14 have no such setting, and none is made up.
_SET_LIMIT = """(
  SELECT CASE WHEN set_config(name, CASE WHEN reset_val::bigint = 0 OR reset_val::bigint > {ms} THEN '{ms}' END, false)
   IS NOT NULL THEN reset_val END
  FROM pg_settings WHERE name = 'idle_session_timeout' AND pg_backend_pid() = {pid})"""
_BACKEND_START = "(SELECT extract(epoch FROM backend_start) FROM pg_stat_get_activity({pid}))"


def limits_of_rest(pid: int, milliseconds: int) -> tuple[str, ...]:
    """Have the session of this pid end after so long a rest, unless a shorter one is declared for it.

    Answers what is declared in milliseconds, 0 for nothing, NULL where nothing was set; and when the backend started.
    """
    limit = _SET_LIMIT.format(pid=pid, ms=milliseconds)
    return (
        f"SELECT {limit}, {_BACKEND_START.format(pid=pid)}, {_TIME}",
        f"SELECT {limit}, NULL, {_TIME}",
    )


def own_limit(row: Row | None, milliseconds: int) -> float | None:
    """Seconds after which our own value, and no declared one, ends the session; None where it does not."""
    declared_ms = None if row is None else _int(row[0])
    return milliseconds / 1000 if declared_ms is not None and (declared_ms == 0 or declared_ms > milliseconds) else None


def backend_start(row: Row | None) -> float | None:
    """From the answer to `limits_of_rest`."""
    return None if row is None else _float(row[1])


# By pid, start of the backend and name alone this ended an application's open transaction, three times of three: a
# pooler had passed on the backend that we had left. So it must be at rest, and nothing may have happened in it since we
# used it. The start of the server tells that a pid is not of another server, to which the same name leads by now. All
# in one statement: between check and end lies no round trip.
_TERMINATE = """
SELECT coalesce((
  SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_get_activity({pid})
  WHERE usesysid = (SELECT oid FROM pg_catalog.pg_roles WHERE rolname = session_user)
   AND datid = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())
   AND backend_type = 'client backend' AND application_name LIKE '{prefix}/%'
   AND state = 'idle' AND extract(epoch FROM state_change) <= {last_used_by!r}
   AND {same_backend}
   AND abs(extract(epoch FROM pg_catalog.pg_postmaster_start_time()) - {server_started_at!r}) < {tolerance!r}
 ), false), {time}
"""

_TOLERANCE_SECONDS = 1e-5
"""Two of the server's own times are the same: they have microseconds, and a float of today's some less."""


def terminate(left: LeftSession) -> str:
    """End a session of ours if, and only if, nobody else has it; answers whether it was told to end."""
    same_backend = (
        "true"
        if left.backend_started_at is None
        else f"abs(extract(epoch FROM backend_start) - {left.backend_started_at!r}) < {_TOLERANCE_SECONDS!r}"
    )
    return _TERMINATE.format(
        pid=left.pid,
        prefix=APPLICATION,
        last_used_by=left.last_used_by,
        same_backend=same_backend,
        server_started_at=left.server_started_at,
        tolerance=_TOLERANCE_SECONDS,
        time=_TIME,
    )


def terminated(row: Row | None) -> bool:
    """From the answer to `terminate`."""
    return row is not None and _bool(row[0]) is True


def server_time(row: Row | None) -> float | None:
    """The last column of any answer: seconds since the epoch, None where the server refused or would not say."""
    return None if row is None else _float(row[-1])


def identity(row: Row | None) -> Identity:
    """Who answered; nobody known where the server refused."""
    if row is None:
        return Identity()
    pid, started_at, address, port, in_recovery, _read_only, system_identifier, timeline, _ = row
    return Identity(
        address=None if address is None else f"{address}:{port}",
        started_at=_float(started_at),
        system_identifier=system_identifier,
        timeline=_int(timeline),
        in_recovery=_bool(in_recovery),
        backend_pid=_int(pid),
    )


def write_answer(row: Row | None) -> WriteAnswer:
    xid, timeline, _ = row or (None, None, None)
    return WriteAnswer(writable=xid is not None, timeline=None if timeline is None else int(timeline, base=16))


def declared(row: Row | None) -> Declared | None:
    if row is None:
        return None
    version, idle, idle_in_transaction, keepalive, most, reserved, used, in_recovery, _ = row
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
    active, idle, in_transaction, longest_idle, oldest, longest_in_transaction, *role, _ = row
    of_role, resting, longest_rest = role
    return Activity(
        connections={
            "active": _int(active) or 0,
            "idle": _int(idle) or 0,
            "idle_in_transaction": _int(in_transaction) or 0,
        },
        longest_idle_seconds=_float(longest_idle),
        oldest_seconds=_float(oldest),
        longest_idle_in_transaction_seconds=_float(longest_in_transaction),
        role_sessions=_int(of_role),
        role_resting=_int(resting),
        role_longest_rest_seconds=_float(longest_rest),
    )


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)


def _bool(text: str | None) -> bool | None:
    return None if text is None else text == "t"
