"""What asyncpg raises, told as facts (see `sidecar.probes.errors`)."""

from __future__ import annotations

import asyncpg

from sidecar.probes.driver import Failure
from sidecar.probes.errors import CANNOT_CONNECT as ANY_DRIVERS
from sidecar.probes.errors import Attempt, CannotConnect, Rows, causes, driver_error, plainly
from sidecar.probes.postgresql.signals import signal_of

ERRORS: tuple[type[Exception], ...] = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What asyncpg raises where a connection fails, as it comes where SQLAlchemy does not wrap it."""


def _refused(error: asyncpg.PostgresError, attempt: Attempt) -> CannotConnect:
    reason = f"{attempt.where} refused the connection: {error} (SQLSTATE {error.sqlstate})"
    said = signal_of(error.sqlstate, str(error))
    return CannotConnect(reason, name=type(error).__name__, sqlstate=error.sqlstate, said=said)


def _about_the_connection(error: asyncpg.PostgresError, attempt: Attempt) -> CannotConnect:
    """A pooler's word has a severity; without one it is asyncpg's own conclusion, although it looks like a word."""
    return _refused(error, attempt) if getattr(error, "severity", None) is not None else plainly(error, attempt)


def _no_postgresql(error: Exception, attempt: Attempt) -> CannotConnect:
    return CannotConnect(f"{attempt.where} does not answer as PostgreSQL does", name=type(error).__name__)


CANNOT_CONNECT: Rows[[Attempt]] = {
    **ANY_DRIVERS,
    asyncpg.PostgresError: _refused,
    asyncpg.PostgresConnectionError: _about_the_connection,
    asyncpg.InterfaceError: plainly,
    # The driver trusts whoever answers: what no PostgreSQL would say makes it stumble.
    asyncpg.InternalClientError: _no_postgresql,
    AttributeError: _no_postgresql,
    LookupError: _no_postgresql,
}


def failure_of(error: BaseException) -> Failure:
    """What an error says. A server's own word has a severity, which the errors that asyncpg makes up lack."""
    own = driver_error(error)
    return Failure(
        text=f"{type(own).__name__}: {own}",
        sqlstate=getattr(own, "sqlstate", None),
        said_by_server=any(getattr(link, "severity", None) is not None for link in causes(error)),
    )
