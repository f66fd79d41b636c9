"""The table of a server's sessions and its limits, as any role may read it: what a budget is made from.

One statement, one row, no transaction, no privilege beyond CONNECT. Other roles' sessions show as little more than that
they are there, which is all that is counted; parallel workers of theirs cannot be told apart and count as sessions.
"""

from __future__ import annotations

from collections.abc import Sequence

from sidecar.core.budget import Session, SessionTable

# `pg_stat_activity` may have been revoked, and the function under it not.
FROM = ("pg_stat_activity", "pg_stat_get_activity(NULL)")
"""Where sessions are read, the preferred first."""

# A superuser is bound by no limit but max_connections. Who may use the reserve (PostgreSQL 16 and later) is told by
# membership in a role that older servers do not have.
_QUERY = """
WITH me AS MATERIALIZED (
  SELECT oid, rolname, rolconnlimit, rolsuper FROM pg_roles WHERE rolname = session_user
), sessions AS MATERIALIZED (
  SELECT pid, usesysid = me.oid AS mine, datid, application_name AS name,
   usesysid = me.oid AND backend_type IS DISTINCT FROM 'client backend' AS helper
  FROM {activity}, me WHERE usesysid IS NOT NULL AND datid IS NOT NULL
)
SELECT current_setting('max_connections')::int - CASE WHEN me.rolsuper THEN 0 ELSE (
   SELECT coalesce(sum(setting::int), 0) FROM pg_settings WHERE name = 'superuser_reserved_connections' OR (
    name = 'reserved_connections' AND NOT coalesce((
     SELECT pg_has_role(me.oid, oid, 'MEMBER') FROM pg_roles WHERE rolname = 'pg_use_reserved_connections'), false)))
  END,
 (SELECT count(*) FROM sessions WHERE NOT helper),
 me.rolname, CASE WHEN me.rolsuper THEN -1 ELSE me.rolconnlimit END,
 (SELECT count(*) FROM sessions WHERE mine AND NOT helper),
 d.datname, CASE WHEN me.rolsuper THEN -1 ELSE d.datconnlimit END,
 (SELECT count(*) FROM sessions s WHERE s.datid = d.oid AND NOT helper),
 (SELECT string_agg(pid || ' ' || mine || ' ' || (s.datid = d.oid) || ' ' || name, E'\\n' ORDER BY pid)
  FROM sessions s WHERE NOT helper AND name LIKE '{prefix}/%')
FROM me, pg_database d WHERE d.datname = current_database()
"""


def queries(prefix: str) -> tuple[str, ...]:
    """The statements to try, in this order; the first that the server does not refuse tells. `prefix` is our names'."""
    return tuple(_QUERY.format(activity=each, prefix=prefix) for each in FROM)


def table(row: Sequence[str | None]) -> SessionTable:
    """The row, understood. Raises ValueError where it is none of this form."""
    usable, used, role, role_limit, role_used, database, database_limit, database_used, names = row
    return SessionTable(
        usable=_number(usable),
        used=_number(used),
        role=role or "",
        role_limit=_limit(role_limit),
        role_used=_number(role_used),
        database=database or "",
        database_limit=_limit(database_limit),
        database_used=_number(database_used),
        sidecars=tuple(_session(line) for line in (names or "").splitlines()),
    )


def _number(text: str | None) -> int:
    if text is None:
        raise ValueError("no number")
    return int(text)


def _limit(text: str | None) -> int | None:
    number = _number(text)
    return None if number < 0 else number


def _session(line: str) -> Session:
    pid, mine, here, name = line.split(" ", 3)
    return Session(pid=int(pid), name=name, in_database=here == "true", own_role=mine == "true")
