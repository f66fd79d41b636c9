"""Asks the server, now and then, what it declares: timeouts, keepalive, how full it is, and how long the
application's own sessions have rested.

One short connection a minute, two queries, no privileges. What the server declares is no measurement: a pooler passes
PostgreSQL's value on although its own timer decides. It is compared with what was measured, and it bounds the advice
while nothing has been measured.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from sidecar.core.advice.verdict import Activity
from sidecar.core.budget import Declared
from sidecar.probes.postgresql.endpoint import APPLICATION, CannotConnect, Endpoint
from sidecar.probes.postgresql.wire import ConnectionEnded, ProbeConnection

log = logging.getLogger("sidecar.observer")

EVERY_SECONDS = 60.0
RETRY_SECONDS = 5.0
DEADLINE_SECONDS = 5.0

# Timeouts come in the unit pg_settings names (ms or s); a setting the server does not have yields NULL. A superuser's
# reserve and that of pg_use_reserved_connections are not for us.
_QUERY = """
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
_ACTIVITY = f"""
SELECT count(*) FILTER (WHERE state = 'active'), count(*) FILTER (WHERE state = 'idle'),
 count(*) FILTER (WHERE state LIKE 'idle in transaction%'),
 extract(epoch FROM max(now() - state_change) FILTER (WHERE state = 'idle')),
 extract(epoch FROM max(now() - backend_start)),
 extract(epoch FROM max(now() - state_change) FILTER (WHERE state LIKE 'idle in transaction%'))
FROM pg_stat_activity
WHERE usename = current_user AND datname = current_database() AND client_addr IS NOT DISTINCT FROM inet_client_addr()
 AND application_name NOT LIKE '{APPLICATION}/%'
"""  # noqa: S608 - a constant


async def observe(endpoint: Endpoint) -> tuple[Declared, Activity | None]:
    """Ask once. A server that would not tell declares nothing; raises CannotConnect or ConnectionEnded."""
    connection = await endpoint.open("observer", deadline_seconds=DEADLINE_SECONDS)
    try:
        declared = _declared(await connection.query(_QUERY, DEADLINE_SECONDS), connection)
        return declared, _activity(await connection.query(_ACTIVITY, DEADLINE_SECONDS))
    finally:
        connection.terminate()


def _activity(row: tuple[str | None, ...] | None) -> Activity | None:
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


def _declared(row: tuple[str | None, ...] | None, connection: ProbeConnection) -> Declared:
    if row is None:
        log.info("server declares nothing", extra={"refusal": connection.refusal})
        return Declared()
    version, idle, idle_in_transaction, keepalive, most, reserved, used, in_recovery = row
    return Declared(
        server_version=version,
        idle_session_timeout=_float(idle),
        idle_in_transaction_timeout=_float(idle_in_transaction),
        tcp_keepalives_idle=_float(keepalive),
        max_connections=_int(most),
        reserved_connections=_int(reserved),
        used_connections=_int(used),
        in_recovery=None if in_recovery is None else in_recovery == "t",
    )


async def keep_observing(endpoint: Endpoint, tell: Callable[[Declared, Activity | None], None]) -> None:
    """Ask for ever. A database that cannot be reached is asked again soon; the heartbeat tells about outages."""
    while True:
        pause = EVERY_SECONDS
        try:
            declared, activity = await observe(endpoint)
        except (CannotConnect, ConnectionEnded):
            pause = RETRY_SECONDS
        else:
            tell(declared, activity)
        await asyncio.sleep(pause * random.uniform(0.9, 1.1))  # noqa: S311 - no secret


def _float(text: str | None) -> float | None:
    return None if text is None else float(text)


def _int(text: str | None) -> int | None:
    return None if text is None else int(text)
