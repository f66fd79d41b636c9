"""A driver that tells of every login that was refused, whoever wanted it."""

from __future__ import annotations

from collections.abc import Callable

from sidecar.core.budget import ConnectionRole
from sidecar.core.evidence import Keepalive
from sidecar.core.signals import ServerSignal
from sidecar.probes.driver import Driver, Failure, PlainConnection, WatchedConnection
from sidecar.probes.errors import CannotConnect

OnRefused = Callable[[ConnectionRole, ServerSignal, str], None]
"""Is told what the connection was wanted for, what the server meant, and the SQLSTATE it gave."""


class TellingDriver:
    """A `sidecar.probes.driver.Driver` that does as another does. Errors pass, after `refused` was told of them."""

    def __init__(self, driver: Driver, refused: OnRefused) -> None:
        self._driver, self._refused = driver, refused
        self.sqlalchemy_url, self.errors = driver.sqlalchemy_url, driver.errors

    async def open(
        self,
        role: ConnectionRole,
        *,
        deadline_seconds: float,
        host: str | None = None,
        keepalive: Keepalive | None = None,
        user_timeout_ms: int | None = None,
    ) -> WatchedConnection:
        try:
            return await self._driver.open(
                role, deadline_seconds=deadline_seconds, host=host, keepalive=keepalive, user_timeout_ms=user_timeout_ms
            )
        except CannotConnect as error:
            self._tell(role, error)
            raise

    async def connect(
        self,
        role: ConnectionRole,
        *,
        deadline_seconds: float,
        keepalive: Keepalive | None = None,
        user_timeout_ms: int | None = None,
        statement_cache: bool = True,
    ) -> PlainConnection:
        try:
            return await self._driver.connect(
                role,
                deadline_seconds=deadline_seconds,
                keepalive=keepalive,
                user_timeout_ms=user_timeout_ms,
                statement_cache=statement_cache,
            )
        except CannotConnect as error:
            self._tell(role, error)
            raise

    def pid_of(self, connection: PlainConnection) -> int | None:
        return self._driver.pid_of(connection)

    async def limit_rest_of(self, connection: PlainConnection, seconds: float, deadline_seconds: float) -> float | None:
        return await self._driver.limit_rest_of(connection, seconds, deadline_seconds)

    def is_closed(self, connection: PlainConnection) -> bool:
        return self._driver.is_closed(connection)

    def takes_no_writes(self, connection: PlainConnection) -> bool:
        return self._driver.takes_no_writes(connection)

    def terminate(self, connection: PlainConnection) -> None:
        self._driver.terminate(connection)

    def failure_of(self, error: BaseException) -> Failure:
        return self._driver.failure_of(error)

    def _tell(self, role: ConnectionRole, error: CannotConnect) -> None:
        if error.said is not None and error.sqlstate is not None:
            self._refused(role, error.said, error.sqlstate)
